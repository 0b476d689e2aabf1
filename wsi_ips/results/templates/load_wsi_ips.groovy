/*
 * Loads the results of wsi-ips into the images of the open QuPath project: lesions as locked annotations, tiles as tiles.
 *
 * Written by wsi-ips for QuPath 0.5 and newer. In QuPath: open the project, then Automate > Project scripts, or drag this
 * file onto QuPath and run it once (not "Run for project": it goes through all images itself). A second run replaces what
 * it loaded before and leaves everything else alone. Research use only.
 */
import groovy.json.JsonSlurper
import java.util.zip.GZIPInputStream
import qupath.lib.images.ImageData
import qupath.lib.images.servers.ImageServerMetadata
import qupath.lib.io.PathIO

// Where the export lies; the folder of the open project is searched first.
def exported = new File('@FOLDER@')

def project = getProject()
if (project == null) {
    println 'wsi-ips: no project is open'
    return
}
def inProject = new File(project.getPath().toFile().getParentFile(), 'wsi-ips')
def folder = new File(inProject, 'slides.json').isFile() ? inProject : exported
def listing = new File(folder, 'slides.json')
if (!listing.isFile()) {
    println "wsi-ips: ${listing} does not exist; correct the folder at the top of this script"
    return
}
def slides = new JsonSlurper().parse(listing, 'UTF-8').slides

// An image of the exported project names its slide; any other belongs to a slide if it, or its file, has the name of the
// slide's file, with or without its ending.
def stem = { String name -> name.contains('.') ? name.substring(0, name.lastIndexOf('.')) : name }
def nameOf = { uri -> (uri.getPath() ?: '').tokenize('/').with { it ? it.last() : '' } }
def find = { entry ->
    def said = entry.getMetadataMap().get('wsi-ips slide')
    if (said != null && slides.any { it.slide == said })
        return slides.findAll { it.slide == said }
    def names = [entry.getImageName(), *entry.getURIs().collect { nameOf(it) }]
    for (test in [{ n, s -> n == s.file }, { n, s -> n == stem(s.file) || stem(n) == stem(s.file) }]) {
        def found = slides.findAll { slide -> names.any { name -> test(name, slide) } }
        if (found)
            return found
    }
    return []
}

int loaded = 0
def current = getCurrentImageData()
def currentEntry = current == null ? null : project.getEntry(current)
for (entry in project.getImageList()) {
    def found = find(entry)
    if (found.size() != 1) {
        println "wsi-ips: ${entry.getImageName()}: ${found ? 'several slides have this name' : 'no slide of this name'}, left alone"
        continue
    }
    def slide = found[0]
    def objects = new GZIPInputStream(new FileInputStream(new File(folder, slide.objects))).withCloseable {
        PathIO.readObjectsFromGeoJSON(it)
    }
    boolean open = currentEntry != null && currentEntry.getID() == entry.getID()
    def imageData = open ? current : entry.readImageData()
    def metadata = imageData.getServer().getMetadata()
    if (metadata.getWidth() != slide.width || metadata.getHeight() != slide.height) {
        println "wsi-ips: ${entry.getImageName()}: the image has ${metadata.getWidth()} x ${metadata.getHeight()} px, the slide " +
            "${slide.width} x ${slide.height}; left alone"
        continue
    }
    if (imageData.getImageType() == ImageData.ImageType.UNSET)
        imageData.setImageType(ImageData.ImageType.BRIGHTFIELD_H_E)
    if (!metadata.pixelSizeCalibrated())
        imageData.updateServerMetadata(
            new ImageServerMetadata.Builder(metadata).pixelSizeMicrons(slide.mpp_x, slide.mpp_y).build())
    def hierarchy = imageData.getHierarchy()
    def mine = { object -> object.getMetadata().get('wsi-ips') == 'yes' }
    hierarchy.removeObjects(hierarchy.getObjects(null, null).findAll { mine(it) }, true)
    objects.each { it.getMetadata().put('wsi-ips', 'yes') }
    hierarchy.addObjects(objects)
    entry.saveImageData(imageData)
    loaded++
    println "wsi-ips: ${entry.getImageName()}: ${objects.size()} objects"
}
project.syncChanges()
println "wsi-ips: ${loaded} of ${project.getImageList().size()} images now contain their objects"
