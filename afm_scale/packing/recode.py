"""What becomes of an original on its way into a shard: checked, made upright RGB, cropped, encoded; or refused.

Each change of what is seen is told by name, so that it can be counted: none is made in silence.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from PIL import Image, ImageColor

from ..core.errors import ConfigError
from ..data.description import ImageContent
from ..data.oddities import Stored, stored
from ..data.transforms import ImageError, adm_crop, decode_checked, to_rgb
from .naming import SUFFIXES

_EXTENSIONS = {"JPEG": "jpg", "PNG": "png"}  # the only two formats in a shard
_PNG_LEVEL = 3  # a third of the time that Pillow's 6 takes, for a twelfth more bytes
_HINT = "--convert accepts such files"
_FAR = 4  # times its size: more than this is told apart from what every small image needs

TURNED = "turned upright, as its EXIF orientation says"
NOT_TURNED = "left as it is stored, against its EXIF orientation"
FIRST_FRAME = "reduced to the first of its frames or pages"
ON_BACKGROUND = "transparent pixels laid on the background"
EIGHT_BITS = "reduced to 8 bits a channel"
FROM_CMYK = "CMYK colours made RGB"
FROM_PALETTE = "colours of a palette written out"
THREE_CHANNELS = "grey copied to three channels"
MADE_GREY = "colours made grey"
NO_PROFILE = "taken for sRGB, against its colour profile"
OTHER_COLOURS = "colours of another kind made RGB"
ENLARGED = "enlarged to the size of the shards"
FAR_ENLARGED = f"enlarged more than {_FAR} times"
MISNAMED = "of another format than its name says"


class Recoded(NamedTuple):
    extension: str
    data: bytes
    changes: tuple[str, ...]  # the names above


@dataclass(frozen=True, kw_only=True)
class Recode:
    """Settings of the packing of one image, and the doing of it."""

    size: int = 256  # pixels of a side; has no effect on raw
    raw: bool = False  # the bytes of the original if they show what was asked for; what has to be changed becomes PNG
    jpeg_quality: int | None = None  # None: PNG, which loses nothing
    convert: bool = False  # CMYK becomes RGB, and a format other than its name says is believed
    orientation: Literal["apply", "ignore"] = "apply"  # of EXIF; ADM's preprocessing ignores it
    background: str = "white"  # of transparent pixels: a name or #rrggbb
    min_size: int = 1  # pixels of the shorter side; smaller images are left out
    grey: bool = False  # one channel

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"--size is {self.size}; wanted at least 1")
        if self.min_size < 1:
            raise ConfigError(f"--min-size is {self.min_size}; wanted at least 1")
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(f"--jpeg-quality is {self.jpeg_quality}; wanted 1 to 100")
        for flag, other in (("--jpeg-quality", self.jpeg_quality is not None), ("--grey", self.grey)):
            if self.raw and other:
                raise ConfigError(f"--raw keeps the original bytes, {flag} encodes anew; leave one of them out")
        try:
            opaque = len(ImageColor.getrgb(self.background)) == 3
        except ValueError:
            opaque = False
        if not opaque:
            raise ConfigError(f"--background is {self.background[:80]!r}; wanted a colour, such as white or #7f7f7f")

    @property
    def content(self) -> ImageContent:
        if self.raw:
            return ImageContent(size=None, encoding="original")
        return ImageContent(
            size=self.size, encoding="png" if self.jpeg_quality is None else "jpeg", channels=1 if self.grey else 3
        )

    def __call__(self, name: str, data: bytes) -> Recoded:
        """Raises ImageError if this image is not to be packed."""
        image = decode_checked(data)
        assert image.format is not None
        kind, about = image.format, stored(image, data)
        changes = [MISNAMED] if _is_misnamed(name, kind, self.convert) else []
        if image.mode == "CMYK" and not self.convert:
            raise ImageError(f"has CMYK colours ({_HINT})")
        if min(image.size) < self.min_size:
            raise ImageError(f"is smaller than --min-size {self.min_size}: {image.width} x {image.height} pixels")
        shown, seen = self._shown(image, about)
        if not self.raw:
            changes += seen + self._of_storing(image, about) + self._of_size(shown)
            return self._encoded(adm_crop(shown, self.size), changes)
        if kind not in _EXTENSIONS or set(seen) & {TURNED, ON_BACKGROUND, FROM_CMYK, OTHER_COLOURS}:
            return self._encoded(shown, changes + seen + self._of_storing(image, about))
        if about.has_frames and kind != "JPEG":  # what follows a JPEG is no frame that others would show
            return self._encoded(shown, [*changes, *seen])
        return Recoded(_EXTENSIONS[kind], data, tuple(changes + [how for how in seen if how == NOT_TURNED]))

    def _shown(self, image: Image.Image, about: Stored) -> tuple[Image.Image, list[str]]:
        """The image as it is to be seen, in RGB or in grey, and what had to be done to what is seen."""
        changes = []
        if about.has_frames:
            changes.append(FIRST_FRAME)
        if about.is_deep and "transparency" in image.info:
            raise ImageError("has a transparent colour of 16 bits, which is not read")
        if image.mode == "CMYK":
            changes.append(FROM_CMYK)
        elif image.mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "I;16", "I;16B"):
            changes.append(OTHER_COLOURS)
        flat, was_transparent = _opaque(image, self.background)
        if was_transparent:
            changes.append(ON_BACKGROUND)
        shown = to_rgb(flat)
        if about.orientation != 1:
            changes.append(TURNED if self.orientation == "apply" else NOT_TURNED)
            shown = about.upright(shown) if self.orientation == "apply" else about.as_stored(shown)
        return (shown.convert("L") if self.grey else shown), changes

    def _of_storing(self, image: Image.Image, about: Stored) -> list[str]:
        """What is lost or told otherwise by encoding anew."""
        is_grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I;16")
        told = {
            EIGHT_BITS: about.is_deep, NO_PROFILE: about.has_profile, FROM_PALETTE: image.mode in ("P", "PA"),
            MADE_GREY: self.grey and not is_grey, THREE_CHANNELS: is_grey and not self.grey,
        }
        return [how for how, happens in told.items() if happens]

    def _of_size(self, shown: Image.Image) -> list[str]:
        shorter = min(shown.size)
        told = {ENLARGED: shorter < self.size, FAR_ENLARGED: shorter * _FAR < self.size}
        return [how for how, happens in told.items() if happens]

    def _encoded(self, image: Image.Image, changes: list[str]) -> Recoded:
        image.info.clear()  # colour profiles and transparency would be written too
        buffer = io.BytesIO()
        if self.jpeg_quality is None:
            image.save(buffer, "PNG", compress_level=_PNG_LEVEL)
            return Recoded("png", buffer.getvalue(), tuple(changes))
        image.save(buffer, "JPEG", quality=self.jpeg_quality, subsampling=0)  # 4:4:4
        return Recoded("jpg", buffer.getvalue(), tuple(changes))


def _opaque(image: Image.Image, background: str) -> tuple[Image.Image, bool]:
    """The image without transparency, and whether any of its pixels was transparent."""
    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La")
    if not has_alpha and "transparency" not in image.info:
        return image, False
    try:
        whole = image.convert("RGBA")
    except ValueError as error:
        raise ImageError(f"has transparency that is not read: {error}") from None
    alpha = whole.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return (whole.convert("RGB") if has_alpha or image.mode == "P" else image), False
    ground = Image.new("RGB", whole.size, background)
    ground.paste(whole, mask=alpha)
    return ground, True


def _is_misnamed(name: str, format_name: str, accepted: bool) -> bool:
    suffix = PurePosixPath(name).suffix.lower()
    known = next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), None)
    misnamed = known is not None and known != format_name
    if misnamed and not accepted:
        raise ImageError(f"is {format_name}, not what its name says ({suffix}; {_HINT})")
    return misnamed
