"""Images that libraries change in silence, or whose limits they report as damage."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageCms

from afm_scale.packing import recode

from .cases import Case
from .pictures import COLOURS, bytes_of, chunk, cornered, deep_png, jpeg, plain, png, with_chunk, written

TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # orientation: PIL.Image.Transpose that puts it right
OTHER = ("dog", plain(1))


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def frames(kind: str, **options: object) -> bytes:
    return bytes_of(plain(0), kind, save_all=True, append_images=[plain(2), plain(3)], **options)


def rgba() -> Image.Image:
    """Red under full transparency on the left, opaque blue on the right."""
    image = Image.new("RGBA", (20, 20), (*COLOURS[0], 0))
    image.paste((*COLOURS[2], 255), (10, 0, 20, 20))
    return image


def on(colour: object) -> Image.Image:
    image = Image.new("RGB", (20, 20), colour)
    image.paste(COLOURS[2], (10, 0, 20, 20))
    return image


def palette() -> Image.Image:
    image = Image.new("P", (20, 20), 0)
    image.putpalette([*COLOURS[0], *COLOURS[2]])
    image.paste(1, (10, 0, 20, 20))
    return image


def frame_header(data: bytes, marker: int = 0xC0, precision: int = 8) -> bytes:
    at = data.index(b"\xff\xc0")
    return data[:at + 1] + bytes([marker]) + data[at + 2:at + 4] + bytes([precision]) + data[at + 5:]


def profile(size: int = 0) -> bytes:
    """Of another space than sRGB, and as long as is wanted."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes() + bytes(size)


def cases() -> Iterator[Case]:
    def good(name: str, file: str, data: bytes, look: Image.Image | None, *changes: str, **wants: object) -> Case:
        left = {} if look is not None else {wants.pop("left"): 1}
        return Case(
            kind="images", name=name, make=lambda root: _source(root, file, data),
            looks=[*([("cat", look)] if look is not None else []), OTHER], classes=("cat", "dog"),
            changes=dict.fromkeys(changes, 1), left_out=left, **wants,
        )

    def out(name: str, file: str, data: bytes, left: str, **wants: object) -> Case:
        return good(name, file, data, None, left=left, **wants)

    stored = cornered()
    for number, turn in TURNS.items():
        upright = stored.transpose(Image.Transpose(turn))
        yield good(f"JPEG of orientation {number}", "0.jpg", bytes_of(stored, "JPEG", quality=95, exif=exif(number)),
                   upright, recode.TURNED)
    turned, ignored = stored.transpose(Image.Transpose.ROTATE_270), ("--orientation", "ignore")
    for kind, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif")):
        options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
        data = bytes_of(stored, kind, exif=exif(6), **options)
        yield good(f"{kind} turned", f"0.{suffix}", data, turned, recode.TURNED)
        yield good(f"{kind} turned, ignored", f"0.{suffix}", data, stored, recode.NOT_TURNED, options=ignored)
        if kind in ("JPEG", "PNG"):
            yield good(f"{kind} turned, raw", f"0.{suffix}", data, turned, recode.TURNED, options=("--raw",))
    yield good("JPEG of orientation 9", "0.jpg", bytes_of(stored, "JPEG", quality=95, exif=exif(9)), stored)
    yield good("RGBA", "0.png", bytes_of(rgba()), on("white"), recode.ON_BACKGROUND)
    yield good("RGBA on black", "0.png", bytes_of(rgba()), on("black"), recode.ON_BACKGROUND,
               options=("--background", "black"))
    yield good("RGBA on a colour", "0.png", bytes_of(rgba()), on("#7f7f7f"), recode.ON_BACKGROUND,
               options=("--background", "#7f7f7f"))
    yield good("RGBA, raw", "0.png", bytes_of(rgba()), on("white"), recode.ON_BACKGROUND, options=("--raw",))
    yield good("RGBA without transparency", "0.png", bytes_of(plain(0).convert("RGBA")), plain(0))
    yield good("WebP with transparency", "0.webp", bytes_of(rgba(), "WEBP", lossless=True), on("white"),
               recode.ON_BACKGROUND)
    grey = Image.merge("LA", (Image.new("L", (20, 20), 40), Image.new("L", (20, 20), 0)))
    yield good("LA", "0.png", bytes_of(grey), Image.new("RGB", (20, 20), "white"), recode.ON_BACKGROUND,
               recode.THREE_CHANNELS)
    yield good("palette", "0.png", bytes_of(palette()), on(COLOURS[0]), recode.FROM_PALETTE)
    yield good("palette with a transparent colour", "0.png", bytes_of(palette(), transparency=0), on("white"),
               recode.FROM_PALETTE, recode.ON_BACKGROUND)
    yield good("RGB with a transparent colour", "0.png", bytes_of(on(COLOURS[0]), transparency=COLOURS[0]), on("white"),
               recode.ON_BACKGROUND)
    yield good("GIF", "0.gif", bytes_of(palette(), "GIF"), on(COLOURS[0]), recode.FROM_PALETTE)
    yield good("GIF with a transparent colour", "0.gif", bytes_of(palette(), "GIF", transparency=0), on("white"),
               recode.FROM_PALETTE, recode.ON_BACKGROUND)
    yield good("animated GIF", "0.gif", frames("GIF"), plain(0), recode.FIRST_FRAME, recode.FROM_PALETTE)
    yield good("animated PNG", "0.png", frames("PNG"), plain(0), recode.FIRST_FRAME)
    yield good("animated PNG, raw", "0.png", frames("PNG"), plain(0), recode.FIRST_FRAME, options=("--raw",))
    yield good("animated WebP", "0.webp", frames("WEBP", lossless=True), plain(0), recode.FIRST_FRAME)
    yield good("TIFF of pages", "0.tif", frames("TIFF"), plain(0), recode.FIRST_FRAME)
    yield good("JPEG of pictures", "0.jpg", frames("MPO", quality=95), plain(0), recode.FIRST_FRAME)
    yield good("16 bits of RGB", "0.png", deep_png(0), plain(0), recode.EIGHT_BITS)
    yield good("16 bits of RGB, raw", "0.png", deep_png(0), plain(0), options=("--raw",))
    level = Image.new("RGB", (20, 20), (COLOURS[2][0],) * 3)
    yield good("16 bits of grey", "0.png", deep_png(2, 1), level, recode.EIGHT_BITS, recode.THREE_CHANNELS)
    yield good("16 bits of grey in a TIFF", "0.tif", bytes_of(Image.new("I;16", (20, 20), 0x2877), "TIFF"), level,
               recode.EIGHT_BITS, recode.THREE_CHANNELS)
    yield good("16 bits in a PPM", "0.ppm", b"P6 # by hand\n20 20\n65535\n" + b"".join(
        struct.pack(">H", value * 257) for value in COLOURS[0]) * 400, plain(0), recode.EIGHT_BITS)
    yield out("16 bits and a transparent colour", "0.png", deep_png(0, extra=chunk(b"tRNS", bytes(6))),
              "has a transparent colour of 16 bits")
    yield out("numbers of 32 bits", "0.tif", bytes_of(Image.new("I", (20, 20), 7), "TIFF"), "has pixels of mode I")
    yield out("floating point", "0.tif", bytes_of(Image.new("F", (20, 20), 0.5), "TIFF"), "has pixels of mode F")
    yield good("grey", "0.png", bytes_of(level.convert("L")), level, recode.THREE_CHANNELS)
    yield good("black and white", "0.png", bytes_of(Image.new("1", (20, 20), 1)), Image.new("RGB", (20, 20), "white"),
               recode.THREE_CHANNELS)
    one_channel = bytes_of(level.convert("L"))
    yield Case(kind="images", name="kept grey", make=lambda root: _source(root, "0.png", one_channel),
               looks=[("cat", level), ("dog", plain(1).convert("L"))], options=("--grey",),
               changes={recode.MADE_GREY: 1})
    cmyk = bytes_of(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "JPEG", quality=95)
    yield out("CMYK", "0.jpg", cmyk, "has CMYK colours (--convert")
    yield good("CMYK, converted", "0.jpg", cmyk, Image.new("RGB", (20, 20), (255, 0, 0)), recode.FROM_CMYK,
               options=("--convert",))
    yield good("YCbCr in a TIFF", "0.tif", bytes_of(plain(0).convert("YCbCr"), "TIFF"), plain(0), recode.OTHER_COLOURS)
    lab = Image.new("LAB", (20, 20), (50, 0, 0))
    yield good("Lab in a TIFF", "0.tif", bytes_of(lab, "TIFF"), lab.convert("RGB"), recode.OTHER_COLOURS)
    yield out("PNG named as a JPEG", "0.jpg", png(0), "is PNG, not what its name says")
    yield good("PNG named as a JPEG, believed", "0.jpg", png(0), plain(0), recode.MISNAMED, options=("--convert",))
    yield good("1 x 1 pixel", "0.png", png(0, (1, 1)), plain(0), recode.ENLARGED, recode.FAR_ENLARGED)
    yield good("half the size", "0.png", png(0, (8, 9)), plain(0), recode.ENLARGED)
    yield out("smaller than is wanted", "0.png", png(0, (8, 30)), "is smaller than --min-size 9",
              options=("--min-size", "9"))
    yield out("long and thin", "0.png", png(0, (400_000, 1)), "is too long and thin")
    yield out("more pixels than are safe", "0.png", bytes_of(Image.new("1", (20_000, 10_000))), "has more than")
    text = zlib.compress(b"a" * (2 << 20))
    yield good("PNG with 2 MB of text", "0.png", with_chunk(png(0), b"tEXt", b"Comment\0" + b"a" * (2 << 20)), plain(0))
    yield good("PNG with 2 MB of compressed text", "0.png", with_chunk(
        png(0), b"zTXt", b"Comment\0\0" + text), plain(0))
    yield good("PNG with 2 MB of text in UTF-8", "0.png", with_chunk(
        png(0), b"iTXt", b"Comment\0\1\0\0\0" + text), plain(0))
    yield good("PNG with text after its pixels", "0.png", png(0)[:-12] + chunk(
        b"zTXt", b"Comment\0\0" + text) + png(0)[-12:], plain(0))
    yield good("PNG with a colour profile of 2 MB", "0.png", with_chunk(
        png(0), b"iCCP", b"big\0\0" + zlib.compress(bytes(2 << 20))), plain(0))
    yield out("PNG with damaged text", "0.png", with_chunk(png(0), b"zTXt", b"Comment\0\0" + text).replace(
        b"Comment", b"Cumment"), "is corrupt or truncated")
    yield good("PNG with a colour profile", "0.png", bytes_of(plain(0), icc_profile=profile()), plain(0),
               recode.NO_PROFILE)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield good("PNG with the profile of sRGB", "0.png", bytes_of(plain(0), icc_profile=srgb), plain(0))
    yield good("PNG of another gamma", "0.png", with_chunk(png(0), b"gAMA", struct.pack(">I", 100_000)), plain(0),
               recode.NO_PROFILE)
    yield good("JPEG with a large colour profile", "0.jpg", jpeg(0, icc_profile=profile(1 << 21)), plain(0),
               recode.NO_PROFILE)
    yield good("JPEG with text after its end", "0.jpg", jpeg(0) + b"made by hand", plain(0))
    yield out("JPEG without loss", "0.jpg", frame_header(jpeg(0), 0xC3), "is a JPEG of a kind that is not read")
    yield out("JPEG of 12 bits", "0.jpg", frame_header(jpeg(0), 0xC1, 12), "is a JPEG of a kind that is not read")
    yield out("TIFF of an unknown compression", "0.tif", _compression(bytes_of(plain(0), "TIFF")),
              "is corrupt or truncated, or of a kind")
    yield out("JPEG cut short", "0.jpg", jpeg(0)[:-20], "is corrupt or truncated")
    yield out("PNG cut short", "0.png", png(0)[:-20], "is corrupt or truncated")
    yield out("HEIC named as a JPEG", "0.jpg", b"\0\0\0\x18ftypheic" + bytes(100), "is not an image of a known format")
    yield out("a web page", "0.jpg", b"<html>404</html>", "is not an image of a known format")
    yield out("nothing", "0.jpg", b"", "is empty")
    yield out("zeros", "0.jpg", bytes(999), "holds nothing but zero bytes")
    yield good("an original, raw", "0.jpg", jpeg(0), plain(0), options=("--raw",))
    yield Case(kind="images", name="a background that is none", make=lambda root: _source(root, "0.png", png(0)),
               told="--background is 'glass'", options=("--background", "glass"))
    yield Case(kind="images", name="raw and grey", make=lambda root: _source(root, "0.png", png(0)),
               told="--raw keeps the original bytes, --grey", options=("--raw", "--grey"))


def _source(root: Path, file: str, data: bytes) -> Path:
    return written(root, {f"cat/{file}": data, "dog/0.png": png(1)})


def _compression(data: bytes) -> bytes:
    """A TIFF whose tag of the compression has a number that nobody gave."""
    at = data.index(struct.pack("<HHI", 259, 3, 1))
    return data[:at + 8] + struct.pack("<H", 50999) + data[at + 10:]


