"""Small images, folders and archives of them, and what shards made of them hold."""

import io
import tarfile
from pathlib import Path

from PIL import Image

from trainer.shards import read_shards

WNIDS = ("n01440764", "n01443537", "n02105855")


def encoded(color, form="JPEG", size=(24, 16), mode="RGB", **options):
    buffer = io.BytesIO()
    Image.new("RGB", size, (color, 255 - color, 0)).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def tree(folder, classes=WNIDS, images=4):
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(images):
            (folder / name / f"{number}.jpg").write_bytes(encoded(index * 40 + number))
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def members(folder, split="train"):
    """Key → image and label, over all shards."""
    found = {}
    for path in read_shards(folder, split).paths:
        with tarfile.open(path) as archive:
            data = {member.name: archive.extractfile(member).read() for member in archive}
        for name in data:
            if name.endswith(".jpg"):
                assert name[:-4] not in found
                found[name[:-4]] = (data[name], int(data[name[:-3] + "cls"]))
    return found


def tar(files, path=None):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    if path:
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()
