/* Runs the script SCRIPT in a stand-in of QuPath with the project PROJECT, TWICE as told, and prints what the images hold.

   Entries open as images of the sizes in SIZES (JSON: name -> [width, height]); one object drawn by a person is in each. */
import groovy.json.JsonOutput
import groovy.json.JsonSlurper
import qupath.lib.images.ImageData
import qupath.lib.images.servers.ImageServerMetadata
import qupath.lib.objects.PathObject

class Entry {
    String name, id
    Map<String, String> metadataMap
    List<URI> uris
    ImageData data
    int saved = 0

    String getImageName() { name }
    String getID() { id }
    List<URI> getURIs() { uris }
    ImageData readImageData() { data }
    void saveImageData(ImageData some) { assert some.is(data); saved++ }
}

def (script, project, sizes, times) = [new File(args[0]), new File(args[1]), new JsonSlurper().parseText(args[2]), args[3] as int]
def stored = new JsonSlurper().parse(project, 'UTF-8')
def entries = stored.images.collect { image ->
    def size = sizes[image.imageName]
    def data = new ImageData(metadata: new ImageServerMetadata(width: size[0], height: size[1]))
    data.hierarchy.addObjects([new PathObject(feature: [by: 'a person'])])
    new Entry(name: image.imageName, id: "${image.entryID}", metadataMap: image.metadata,
        uris: [new URI(image.serverBuilder.uri)], data: data)
}
def opened = [getPath: { project.toPath() }, getImageList: { entries }, syncChanges: { }, getEntry: { entries[0] }]
times.times {
    def shell = new GroovyShell(this.class.classLoader, new Binding([
        getProject: { new Expando(opened) },
        getCurrentImageData: { entries[0].data },
    ]))
    shell.evaluate(script)
}
println '=' * 8
println JsonOutput.toJson(entries.collectEntries { [it.name, [
    saved: it.saved,
    people: it.data.hierarchy.objects.count { o -> o.feature.by },
    features: it.data.hierarchy.objects.findAll { o -> !o.feature.by }.collect { o -> o.feature.id },
    mpp: [it.data.metadata.pixelWidth, it.data.metadata.pixelHeight],
    type: "${it.data.imageType}",
]] })
