"""People's own pictures, from wherever they are, in the sizes in which Qwen2-VL's authors show them to it."""
import base64
import io
import itertools
import threading
import warnings
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")      # no decoder of another one is let near a file
TIMEOUT_S, MAX_MB = 10, 100      # that a download may take; MB


class ImageError(ValueError):
    """A picture that cannot be used; the message is one line for the person who named it."""


def display_name(source):
    """A path or address as it can be printed."""
    source = source.partition(",")[0] if source.startswith("data:") else source
    source = source if len(source) <= 100 else f"{source[:60]}...{source[-37:]}"
    return source.encode(errors="backslashreplace").decode()


def download(url):
    """The file at an address; PictureError where it does not come in time, whatever keeps it."""
    import requests
    answer = []

    def get():
        try:
            with requests.get(url, timeout=TIMEOUT_S, stream=True) as response:
                response.raise_for_status()
                answer.append(b"".join(itertools.islice(response.iter_content(10**6), MAX_MB)))
        except (requests.RequestException, ValueError) as error:
            answer.append(error)

    # in a thread, for neither looking up a name nor an answer in drops has a time limit of its own
    thread = threading.Thread(target=get, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    match answer[0] if answer else requests.Timeout():
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


def open_image(source):
    """The file that a path, an address (http, https, file) or data:image/...;base64,... names."""
    if source.startswith(("http://", "https://")):
        return download(source)
    if source.startswith("data:"):
        return io.BytesIO(base64.b64decode(source.partition(",")[2]))
    path = Path(unquote(source[7:]) if source.startswith("file://") else source)
    if source.strip() and path.is_dir():
        raise ImageError(f"{display_name(source)} is a folder: name a picture in it")
    if not path.is_file():
        raise ImageError(f"there is no file {display_name(source)!r}: give a picture's path, or its http(s) address")
    return path.open("rb")


def load_image(source):
    """What `open_source` takes -> the picture, upright, on white, RGB. PictureError for anything else."""
    from qwen_vl_utils.vision_process import to_rgb  # takes a second: not before it is needed
    name, image = display_name(source), None
    large = Image.DecompressionBombError, Image.DecompressionBombWarning
    try:
        with open_image(source) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):       # Pillow would cut off what is brighter than 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return to_rgb(image.convert("RGBA") if image.has_transparency_data else image)
    except ImageError:
        raise
    except large:
        raise ImageError(f"{name} has more than {Image.MAX_IMAGE_PIXELS // 10**6} million pixels: "
                           "make it smaller") from None
    except PermissionError:
        raise ImageError(f"{name} may not be read: give yourself the right to, or name another picture") from None
    except Exception as error:      # decoders of broken files raise whatever they stumble over
        if image is None:
            raise ImageError(f"{name} is no picture, or a damaged one: give one as {', '.join(FORMATS)}") from None
        raise ImageError(f"{name} is damaged or cut short ({str(error)[:80]}): get it anew") from None


def resize_for_model(picture, name, backbone):
    """A picture in the size in which the backbone sees it."""
    from qwen_vl_utils import fetch_image
    factor, low, high = backbone.resize_limits()
    patch, size = backbone.vlm.config.vision_config.patch_size, "x".join(map(str, picture.size))
    if min(picture.size) < patch:
        raise ImageError(f"{name} is {size}, too small to see anything in: give {patch}x{patch} pixels at least")
    try:
        return fetch_image({"image": picture, "min_pixels": low, "max_pixels": high}, image_patch_size=factor / 2)
    except ValueError:
        raise ImageError(f"{name} is {size}, and Qwen2-VL takes no picture that is over 200 times as long as wide: "
                           "crop it") from None
