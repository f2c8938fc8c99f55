"""Images decoded, cropped and resized as the original does, for every kind of file."""

import io
import pickle
import struct
import zlib
from hashlib import sha256
from pathlib import Path
from random import Random

import numpy as np
import pytest
import sklearn.datasets
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer.config import UsageError
from trainer.preprocess import DecodeError, Transform, central_window, decode, random_window, resize

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "preprocess.npz")
PHOTOGRAPHS = [(Path(sklearn.datasets.__file__).parent / "images" / name).read_bytes() for name in GOLDEN["files"]]


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def by_pillow(encoded):
    return torch.from_numpy(np.array(Image.open(io.BytesIO(encoded)).convert("RGB")))


@pytest.fixture(scope="module")
def photograph():
    return Image.open(io.BytesIO(PHOTOGRAPHS[0])).crop((100, 50, 267, 199))  # odd sides


# Against the original's numbers; it does not clip, so its overshoot is clipped here.


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("kind", ["eval", "train"])
def test_pixels_are_the_originals(index, kind):
    assert sha256(PHOTOGRAPHS[index]).hexdigest() == GOLDEN["sha256"][index]
    if kind == "eval":
        pixels = Transform(224, train=False)(PHOTOGRAPHS[index], Random(0))
    else:
        top, left, height, width = map(int, GOLDEN["windows_yxhw"][index])
        pixels = resize(decode(PHOTOGRAPHS[index])[top : top + height, left : left + width], 224, 224)
    assert pixels.dtype == torch.uint8
    expected = GOLDEN[f"tf2_islow/{kind}_samples/{index}"].clip(0, 255)
    deviation = np.abs(pixels.permute(1, 2, 0)[::7, ::7].numpy() - expected)
    assert deviation.mean() <= 0.25  # half a level is lost in rounding at most, a quarter in the mean
    assert deviation.max() <= 1


def test_the_central_window_is_the_originals():
    for (height, width), side, offset in zip(
        GOLDEN["image_hw"].tolist(), GOLDEN["crop_size"].tolist(), GOLDEN["crop_offset_yx"].tolist(), strict=True
    ):
        assert central_window(height, width, 224) == (*offset, side, side)
        assert central_window(width, height, 224) == (*reversed(offset), side, side)  # 133.5 pixels round up


# Random windows


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (224, 224), (90, 110)])
def test_random_windows_keep_within_bounds_and_fill_them(height, width):
    random = Random(0)
    windows = [window for _ in range(4000) if (window := random_window(height, width, random))]
    assert len(windows) > 3900
    areas = [rows * columns / (height * width) for _, _, rows, columns in windows]
    ratios = [columns / rows for _, _, rows, columns in windows]
    assert all(
        top >= 0 and left >= 0 and top + rows <= height and left + columns <= width
        for top, left, rows, columns in windows
    )
    assert 0.1 <= min(areas) < 0.13
    assert 0.85 < max(areas) <= 1
    slack = 1 / min(height, width) / 0.3  # sides are whole pixels
    assert 3 / 4 - slack <= min(ratios) < 0.78
    assert 1.3 < max(ratios) <= 4 / 3 + slack
    assert min(top for top, *_ in windows) == min(left for _, left, *_ in windows) == 0
    assert max(top + rows for top, _, rows, _ in windows) == height
    assert max(left + columns for _, left, _, columns in windows) == width


def test_the_height_is_drawn_uniformly_for_a_given_ratio():
    """An area drawn uniformly, as in torchvision, would give heights of mean 0.71."""
    random, heights = Random(0), []
    while len(heights) < 3000:
        window = random_window(1000, 1000, random)
        if window and abs(window[3] / window[2] - 1) < 0.1:
            heights.append(window[2] / 1000)
    assert abs(np.mean(heights) - (0.1**0.5 + 1) / 2) < 0.03


@pytest.mark.parametrize(("height", "width"), [(600, 100), (100, 600)])
def test_narrow_images_still_have_random_windows(height, width):
    random = Random(0)
    assert sum(random_window(height, width, random) is not None for _ in range(1000)) > 990


def test_a_draw_of_the_whole_image_gives_the_central_window():
    drawn = [random_window(3, 3, Random(seed)) for seed in range(100)]
    assert None in drawn
    assert (0, 0, 3, 3) not in drawn


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (1, 300)])
def test_extreme_images_fall_back_to_the_central_window(height, width):
    assert random_window(height, width, Random(0)) is None
    encoded = encode(noise(height, width))
    train = Transform(48, train=True, flip=False)(encoded, Random(0))
    assert torch.equal(train, Transform(48, train=False)(encoded, Random(0)))


def test_training_shows_the_window_that_was_drawn():
    top, left, height, width = random_window(427, 640, Random(5))
    expected = resize(decode(PHOTOGRAPHS[0])[top : top + height, left : left + width], 96, 96)
    assert torch.equal(Transform(96, train=True, flip=False)(PHOTOGRAPHS[0], Random(5)), expected)


def test_a_sample_is_a_function_of_its_generators_seed():
    transform, encoded = Transform(64, train=True), PHOTOGRAPHS[0]
    first = transform(encoded, Random("7/0/cat"))
    assert torch.equal(first, pickle.loads(pickle.dumps(transform))(encoded, Random("7/0/cat")))
    assert not torch.equal(first, transform(encoded, Random("7/1/cat")))


def test_half_of_the_training_images_are_mirrored_and_no_others():
    image = noise(40, 40)
    with_flip = [Transform(None, train=True)(encode(image), Random(seed)) for seed in range(200)]
    without = [Transform(None, train=True, flip=False)(encode(image), Random(seed)) for seed in range(200)]
    same = [torch.equal(a, b) for a, b in zip(with_flip, without, strict=True)]
    assert 70 < sum(same) < 130
    assert all(torch.equal(a.flip(2), b) for a, b, kept in zip(with_flip, without, same, strict=True) if not kept)


def test_a_mirrored_resize_is_the_mirror_of_the_resize():
    pixels = decode(encode(noise(31, 57)))
    assert torch.equal(resize(pixels, 24, 24, flip=True), resize(pixels, 24, 24).flip(2))


# Files of every kind


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"progressive": True}),
        ("RGB", {"subsampling": "4:4:4"}),
        ("RGB", {"subsampling": "4:2:2"}),
        ("RGB", {"subsampling": "4:1:1"}),
        ("RGB", {"keep_rgb": True}),
        ("RGB", {"restart_marker_rows": 1}),
        ("L", {}),
        ("CMYK", {}),  # the fast decoder takes it and shows other colors
    ],
    ids=str,
)
def test_jpegs_decode_as_in_pillow(photograph, mode, options):
    encoded = encode(photograph.convert(mode), "JPEG", **options)
    assert torch.equal(decode(encoded), by_pillow(encoded))


def test_jpegs_that_the_fast_decoder_refuses_decode_as_in_pillow(photograph):
    encoded = encode(photograph, "JPEG")
    start = encoded.index(b"\xff\xda")
    dirty = encoded[:start] + b"junk" + encoded[start:]  # "extraneous bytes", found in ImageNet
    assert torch.equal(decode(dirty), decode(encoded))


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1"])
def test_png_modes_lose_alpha_and_become_rgb(photograph, mode):
    image = photograph.convert(mode)
    expected = image.convert("RGBA").convert("RGB")
    if mode.endswith("A"):
        image.putalpha(7)
    assert np.array_equal(decode(encode(image)), np.array(expected))


@pytest.mark.filterwarnings("error")
def test_transparent_palettes_keep_their_colors(photograph):
    image = photograph.quantize(16)
    expected = np.array(image.convert("RGB"))
    assert np.array_equal(decode(encode(image, transparency=bytes(range(16)))), expected)


def test_16_bit_grays_lose_the_low_byte():
    gray = np.arange(65536, dtype=np.uint16).reshape(128, 512)
    decoded = decode(encode(Image.fromarray(gray)))
    assert np.array_equal(decoded, np.repeat((gray >> 8).astype(np.uint8)[..., None], 3, 2))


def test_exif_orientation_is_ignored(photograph):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90°
    assert torch.equal(decode(encode(photograph, "JPEG", exif=exif)), decode(encode(photograph, "JPEG")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_truncated_images_are_refused(photograph, kind, part):
    encoded = encode(photograph, kind)
    with pytest.raises(DecodeError, match=r"cannot be decoded: .*([Tt]runcated|broken|could not create)"):
        decode(encoded[: int(len(encoded) * part)])


@pytest.mark.parametrize("content", [b"", b"hello, world", b"cos\nsystem\n(S'true'\ntR.", b"\xff\xd8", b"GIF89a" * 9])
def test_other_bytes_are_refused(content):
    with pytest.raises(DecodeError, match=f"neither JPEG, PNG nor WebP: {len(content)} bytes"):
        decode(content)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("options", [{"lossless": True, "exact": True}, {"quality": 90}], ids=str)
def test_webp_decodes_as_in_pillow_and_loses_alpha(photograph, mode, options):
    image = photograph.convert(mode)
    if mode == "RGBA":
        image.putalpha(7)
    encoded = encode(image, "WEBP", **options)
    assert torch.equal(decode(encoded), by_pillow(encoded))
    if "lossless" in options:
        assert np.array_equal(decode(encoded), np.array(photograph.convert("RGB")))


def test_the_first_picture_of_an_animated_webp_is_decoded(photograph):
    frames = [photograph.convert("RGB"), Image.new("RGB", photograph.size)]
    encoded = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(decode(encoded), np.array(frames[0]))


def test_other_formats_of_pillow_are_refused(photograph):
    with pytest.raises(DecodeError, match="neither JPEG, PNG nor WebP"):
        decode(encode(photograph, "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_huge_images_are_refused_before_memory_is_taken(kind):
    if kind == "JPEG":
        encoded = bytearray(encode(noise(8, 8), "JPEG"))
        frame = encoded.index(b"\xff\xc0")
        encoded[frame + 5 : frame + 9] = struct.pack(">HH", 9000, 9000)
    else:
        header = b"IHDR" + struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)
        encoded = encode(noise(8, 8))
        encoded = encoded[:12] + header + struct.pack(">I", zlib.crc32(header)) + encoded[33:]
    with pytest.raises(DecodeError, match="9000 x 9000 pixels"):
        decode(bytes(encoded))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_whole_images_above_the_limit_are_refused(kind, monkeypatch):
    encoded = encode(noise(24, 24), kind)
    monkeypatch.setattr("trainer.preprocess.MAX_PIXELS", 24 * 24)
    decode(encoded)
    monkeypatch.setattr("trainer.preprocess.MAX_PIXELS", 24 * 24 - 1)
    with pytest.raises(DecodeError, match="24 x 24 pixels"):
        decode(encoded)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6))
def test_damaged_bytes_give_an_image_or_a_decode_error(kind, changes):
    encoded = bytearray(encode(noise(24, 16), kind))
    for place, value in changes:
        encoded[int(place * (len(encoded) - 1))] = value
    try:
        pixels = decode(bytes(encoded))
    except DecodeError:
        return
    assert pixels.dtype == torch.uint8
    assert pixels.shape[2] == 3


# Thumbnails and other sizes


@pytest.mark.parametrize(("side", "size"), [(32, None), (32, 32), (8, None), (66, 66), (1, None)])
def test_thumbnails_are_shown_whole_and_in_training_moved(side, size):
    encoded = encode(noise(side, side))
    original = decode(encoded).permute(2, 0, 1)
    assert torch.equal(Transform(size, train=False)(encoded, Random(0)), original)
    canvas = torch.nn.functional.pad(original, (4, 4, 4, 4))
    crops = {canvas[:, top : top + side, left : left + side].numpy().tobytes() for top in range(9) for left in range(9)}
    transform = Transform(size, train=True, flip=False)
    shown = {transform(encoded, Random(seed)).numpy().tobytes() for seed in range(800)}
    assert shown == crops  # all 81 places (a single pixel has two faces), and nothing else


def test_thumbnails_of_another_size_are_resized_whole():
    pixels = decode(encode(noise(32, 32)))
    assert torch.equal(Transform(48, train=False)(encode(noise(32, 32)), Random(0)), resize(pixels, 48, 48))


@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    size=st.one_of(st.none(), st.integers(1, 80)),
    train=st.booleans(),
    gray=st.integers(0, 255),
    seed=st.integers(0, 2**32),
)
def test_every_size_gives_the_promised_shape_and_constants_stay(height, width, size, train, gray, seed):
    encoded = encode(Image.new("RGB", (width, height), (gray, gray, gray)))
    pixels = Transform(size, train)(encoded, Random(seed))
    assert pixels.shape == (3, size or height, size or width)
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    moved = train and (size is None or (height == width and (height <= 64 or height == size)))
    if not moved:  # black moves in
        assert bool((pixels == gray).all())


def test_a_size_of_nothing_is_refused():
    with pytest.raises(UsageError, match="size=0: give the side in pixels"):
        Transform(0, train=True)
