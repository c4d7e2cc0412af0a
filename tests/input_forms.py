"""Images in the forms common in Python, and comparison of their results."""

import numpy as np
from torch.utils.data import Dataset

COUNT = 6
NOT_OF_PIXELS = ("path", "image_id")


def numbers_of(result, *left_out):
    table = result.images.to_pydict()
    dropped = {*NOT_OF_PIXELS, *left_out}
    return {name: values for name, values in table.items() if name not in dropped}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


class Items(Dataset):
    """A dataset that counts how often its items are requested."""

    def __init__(self, items):
        self.items, self.asked = items, 0

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.asked += 1
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


class HubSplit:
    """Imitates a split of a Hugging Face dataset: rows as dicts, columns by name, features."""

    class ClassLabel:
        names = ("cat", "dog")

    def __init__(self, rows):
        self.rows = rows
        self.column_names = list(rows[0])
        self.features = dict.fromkeys(self.column_names) | {"label": self.ClassLabel()}

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key):
        return [row[key] for row in self.rows] if isinstance(key, str) else self.rows[key]
