"""The formats of photographs that are opened for others: Pillow knows more, some of which run other programs, as PostScript does."""

FORMATS = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "TIFF": ".tif",
    "WEBP": ".webp",
    "AVIF": ".avif",
    "JPEG2000": ".jp2",
    "GIF": ".gif",
    "BMP": ".bmp",
    "HEIF": ".heic",
}
"""Pillow's name -> the suffix of a file of that format."""
