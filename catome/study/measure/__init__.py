"""The measures of images and of pairs."""
