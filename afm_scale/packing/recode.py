"""What becomes of an original on its way into a shard: checked, cropped, encoded; or refused with the reason."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import PurePosixPath

from PIL import Image

from ..core.errors import ConfigError
from ..data.description import ImageContent
from ..data.transforms import ImageError, adm_crop, decode_checked, to_rgb
from .originals import SUFFIXES

_EXTENSIONS = {"JPEG": "jpg", "PNG": "png"}  # the only two formats in a shard
_PNG_LEVEL = 3  # a third of the time that Pillow's 6 takes, for a twelfth more bytes
_HINT = "--convert accepts such files"


@dataclass(frozen=True, kw_only=True)
class Recode:
    """Settings of the packing of one image, and the doing of it."""

    size: int = 256  # pixels of a side; has no effect on raw
    raw: bool = False  # the bytes of the original, after all checks; formats other than JPEG and PNG become PNG
    jpeg_quality: int | None = None  # None: PNG, which loses nothing
    convert: bool = False  # CMYK becomes RGB, and a format other than its name says is believed

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"--size is {self.size}; wanted at least 1")
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(f"--jpeg-quality is {self.jpeg_quality}; wanted 1 to 100")
        if self.raw and self.jpeg_quality is not None:
            raise ConfigError("--raw keeps the original bytes, --jpeg-quality encodes anew; leave one of them out")

    @property
    def content(self) -> ImageContent:
        if self.raw:
            return ImageContent(size=None, encoding="original")
        return ImageContent(size=self.size, encoding="png" if self.jpeg_quality is None else "jpeg")

    def __call__(self, name: str, data: bytes) -> tuple[str, bytes]:
        """(extension, bytes) of the member. Raises ImageError if this image is not to be packed."""
        image = decode_checked(data)
        assert image.format is not None
        if not self.convert:
            _refuse_misnamed(name, image.format)
            if image.mode == "CMYK":
                raise ImageError(f"has CMYK colours ({_HINT})")
        rgb = to_rgb(image)
        if not self.raw:
            return self._encoded(adm_crop(rgb, self.size))
        if image.mode != "CMYK" and image.format in _EXTENSIONS:
            return _EXTENSIONS[image.format], data
        return self._encoded(rgb)

    def _encoded(self, image: Image.Image) -> tuple[str, bytes]:
        image.info.clear()  # colour profiles and transparency would be written too
        buffer = io.BytesIO()
        if self.jpeg_quality is None:
            image.save(buffer, "PNG", compress_level=_PNG_LEVEL)
            return "png", buffer.getvalue()
        image.save(buffer, "JPEG", quality=self.jpeg_quality, subsampling=0)  # 4:4:4
        return "jpg", buffer.getvalue()


def _refuse_misnamed(name: str, format_name: str) -> None:
    suffix = PurePosixPath(name).suffix.lower()
    known = next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), None)
    if known is not None and known != format_name:
        raise ImageError(f"is {format_name}, not what its name says ({suffix}; {_HINT})")
