package qupath.lib.io

import groovy.json.JsonSlurper
import qupath.lib.objects.PathObject

/** Stand-in for QuPath's class of this name. */
class PathIO {
    static List<PathObject> readObjectsFromGeoJSON(InputStream stream) {
        new JsonSlurper().parse(stream, 'UTF-8').features.collect { new PathObject(feature: it) }
    }
}
