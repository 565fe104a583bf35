"""Load images from files, addresses and data URLs, and resize them as Qwen2-VL's authors do."""
import base64
import io
import itertools
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageOps

from config import UserError

if TYPE_CHECKING:
    from models.backbones import VisionLanguageBackbone

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")     # Pillow's other decoders never open a file
TIMEOUT_S = 10          # of a download
MAX_MB = 100            # of a download; the rest is cut off
MERGE_SIZE = 2          # Qwen2-VL merges 2 x 2 patches into one image token


class ImageError(UserError):
    """An image that cannot be used. The message is one line."""


def display_name(source: str) -> str:
    """Return a path or address as it can be printed: shortened, without the content of a data URL."""
    if source.startswith("data:"):
        source = source.partition(",")[0]
    if len(source) > 100:
        source = f"{source[:60]}...{source[-37:]}"
    return source.encode(errors="backslashreplace").decode()


def download(url: str) -> BinaryIO:
    """Return the file at an http(s) address. Raises ImageError if it does not arrive within `TIMEOUT_S`."""
    import requests
    results = []

    def get() -> None:
        try:
            with requests.get(url, timeout=TIMEOUT_S, stream=True) as response:
                response.raise_for_status()
                megabytes = response.iter_content(10**6)
                results.append(b"".join(itertools.islice(megabytes, MAX_MB)))
        except (requests.RequestException, ValueError) as error:
            results.append(error)

    # requests limits neither the name lookup nor the total time, so a thread does
    thread = threading.Thread(target=get, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    match results[0] if results else requests.Timeout():
        case bytes(content):
            return io.BytesIO(content)
        case requests.Timeout():
            reason = f"nothing came within {TIMEOUT_S} s"
        case requests.HTTPError() as error:
            reason = f"the server answers {error.response.status_code} {error.response.reason}"
        case requests.ConnectionError():
            reason = "the server cannot be reached"
        case error:
            reason = str(error)[:80]
    raise ImageError(f"cannot download {display_name(url)} ({reason}): "
                     "give an address that a browser opens, or a file")


def open_image(source: str) -> BinaryIO:
    """Return the open file of a path, an address (http, https, file) or data:image/...;base64,...

    Raises ImageError if there is none.
    """
    if source.startswith(("http://", "https://")):
        return download(source)
    if source.startswith("data:"):
        return io.BytesIO(base64.b64decode(source.partition(",")[2]))
    is_url = source.startswith("file://")
    path = Path(unquote(source.removeprefix("file://")) if is_url else source)
    if source.strip() and path.is_dir():
        raise ImageError(f"{display_name(source)} is a folder: name an image in it")
    if not path.is_file():
        raise ImageError(f"there is no file {display_name(source)!r}: give an image's path, or its http(s) address")
    return path.open("rb")


def decode(image: Image.Image) -> Image.Image:
    """Return an opened image decoded, upright by its EXIF orientation, RGBA if any of it is transparent."""
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):       # Pillow would clip 16-bit values at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGBA") if image.has_transparency_data else image


def load_image(source: str) -> Image.Image:
    """Return the image that `open_image` finds: upright, on white, RGB. Raises ImageError."""
    from qwen_vl_utils.vision_process import to_rgb  # imported here because it takes a second
    name, image = display_name(source), None
    too_large = Image.DecompressionBombError, Image.DecompressionBombWarning
    try:
        with open_image(source) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
            return to_rgb(decode(image))
    except ImageError:
        raise
    except too_large:
        raise ImageError(f"{name} has more than {Image.MAX_IMAGE_PIXELS // 10**6} million pixels: "
                         "make it smaller") from None
    except PermissionError:
        raise ImageError(f"no permission to read {name}: change its permissions, or name another image") from None
    except Exception as error:      # decoders of damaged files raise errors of any kind
        if image is None:
            raise ImageError(f"{name} is no image, or a damaged one: give one as {', '.join(FORMATS)}") from None
        raise ImageError(f"{name} is damaged or cut short ({str(error)[:80]}): get it again") from None


def resize_for_model(image: Image.Image, name: str, backbone: "VisionLanguageBackbone") -> Image.Image:
    """Return an image at the size at which the backbone reads it. Raises ImageError, which contains `name`."""
    from qwen_vl_utils import fetch_image
    factor, min_pixels, max_pixels = backbone.resize_limits()
    patch_size = factor // MERGE_SIZE
    size = f"{image.width}x{image.height}"
    if min(image.size) < patch_size:
        raise ImageError(f"{name} is {size}, too small to read: give {patch_size}x{patch_size} pixels at least")
    try:
        return fetch_image({"image": image, "min_pixels": min_pixels, "max_pixels": max_pixels},
                           image_patch_size=patch_size)
    except ValueError:
        raise ImageError(f"{name} is {size}, and Qwen2-VL reads no image over 200 times as long as wide: "
                         "crop it") from None
