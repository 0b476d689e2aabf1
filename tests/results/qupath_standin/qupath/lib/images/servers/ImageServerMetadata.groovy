package qupath.lib.images.servers

/** Stand-in for QuPath's class of this name. */
class ImageServerMetadata {
    int width
    int height
    Number pixelWidth
    Number pixelHeight

    boolean pixelSizeCalibrated() { pixelWidth != null }

    static class Builder {
        ImageServerMetadata built

        Builder(ImageServerMetadata from) { built = new ImageServerMetadata(width: from.width, height: from.height) }

        Builder pixelSizeMicrons(Number x, Number y) {
            built.pixelWidth = x
            built.pixelHeight = y
            this
        }

        ImageServerMetadata build() { built }
    }
}
