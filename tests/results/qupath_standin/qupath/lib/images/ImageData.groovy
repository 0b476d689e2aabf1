package qupath.lib.images

import qupath.lib.images.servers.ImageServerMetadata

/** Stand-in for QuPath's class of this name: the methods that the script calls, and no more. */
class ImageData {
    enum ImageType { UNSET, BRIGHTFIELD_H_E, FLUORESCENCE }

    ImageType imageType = ImageType.UNSET
    ImageServerMetadata metadata
    Hierarchy hierarchy = new Hierarchy()

    def getServer() { [getMetadata: { metadata }] as Server }

    void updateServerMetadata(ImageServerMetadata changed) { metadata = changed }

    interface Server { ImageServerMetadata getMetadata() }

    static class Hierarchy {
        List objects = []

        Collection getObjects(Collection into, Class kind) { new ArrayList(objects) }

        void removeObjects(Collection some, boolean keepChildren) { objects.removeAll { one -> some.any { it.is(one) } } }

        void addObjects(Collection some) { objects.addAll(some) }
    }
}
