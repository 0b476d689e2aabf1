package qupath.lib.objects

/** Stand-in for QuPath's class of this name: the map of its feature and a map of metadata. */
class PathObject {
    Map feature
    Map<String, String> metadata = [:]
}
