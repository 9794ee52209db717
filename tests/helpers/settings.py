"""A setting of a study that takes a moment."""

from dataclasses import replace

from catome.study.run.parameters import Setting


def setting(tmp_path, **change):
    base = Setting(images=3, steps=4, batch_size=2, output=str(tmp_path))
    return replace(base, **change)
