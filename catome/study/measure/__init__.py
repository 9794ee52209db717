"""What is measured of images and of pairs."""
