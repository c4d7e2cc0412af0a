"""Adapters of others' packages: found by their entry points; what fails in them is one line."""

import sys

import pytest
import torch
from torch import nn

from installed import write_package
from vitscope import ViTAdapter, load_model, wrap_model
from vitscope.adapters.model_ids import check_model_id
from vitscope.errors import UnknownModelError, UnsupportedModelError, UsageError, VitscopeError
from vitscope.images.preprocessing import Preprocessing
from vitscope.testing import check_adapter
from vitscope.testing.tiny_timm import TINY_TIMM

LIBRARY = """
    from torch import nn
    from vitscope.adapters.timm import make_timm_adapter
    from vitscope.testing.tiny_timm import TINY_TIMM

    class Wrapper(nn.Module):
        def __init__(self, vit):
            super().__init__()
            self.vit = vit

    class Derived(type(TINY_TIMM["vit"]())):
        pass

    class Adapters:
        def load(self, name):
            return make_timm_adapter(TINY_TIMM[name](), model_id="its own")

        def wrap(self, module):
            return make_timm_adapter(getattr(module, "vit", None) or TINY_TIMM["vit"]())
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a distribution that adapts the library `mine`, or another one."""

    def install(code=LIBRARY, *, library="mine", value="mine:Adapters", **settings):
        points = {library: value}
        write_package(tmp_path, code, group="vitscope.adapters", points=points, **settings)
        monkeypatch.delitem(sys.modules, "mine", raising=False)

    monkeypatch.syspath_prepend(tmp_path)
    yield install
    sys.modules.pop("mine", None)


def test_a_model_is_loaded_by_the_librarys_name(install):
    install()
    vit = load_model("mine:vit")
    assert isinstance(vit, ViTAdapter)
    assert vit.info.id == "mine:vit"
    check_adapter(vit, torch.randn(2, 3, *vit.preprocessing.size))


def test_a_module_of_the_library_is_wrapped(install):
    install()
    import mine

    vit = wrap_model(mine.Wrapper(TINY_TIMM["vit"]()), model_id="called so")
    assert vit.info.id == "called so"
    assert vit.info.family == "timm/vit"


def test_a_preprocessing_given_goes_before_the_adapters(install):
    install()
    import mine

    given = Preprocessing(size=(32, 32), mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    vit = wrap_model(mine.Wrapper(TINY_TIMM["vit"]()), preprocessing=given)
    assert vit.preprocessing == given


def test_a_class_built_on_timms_goes_to_its_own_librarys_adapter(install):
    install()
    import mine

    derived = TINY_TIMM["vit"]()
    derived.__class__ = mine.Derived
    assert wrap_model(derived).info.family == "timm/vit"


def test_without_the_package_neither_id_nor_module_is_known(install):
    install(library="another")
    import mine

    with pytest.raises(UnknownModelError, match="unknown model 'mine:vit'"):
        check_model_id("mine:vit")
    with pytest.raises(UnsupportedModelError, match=r"mine\.Wrapper is not a model that vitscope"):
        wrap_model(mine.Wrapper(nn.Identity()))


def test_an_id_is_checked_without_importing_the_package(install):
    install("raise RuntimeError('imported')")
    check_model_id("mine:vit")
    with pytest.raises(UnknownModelError, match="unknown model 'mine:'"):
        check_model_id("mine:")


def test_vitscopes_own_libraries_stay_its_own(install):
    install("raise RuntimeError('imported')", library="timm")
    assert wrap_model(TINY_TIMM["vit"]()).info.family == "timm/vit"


@pytest.mark.parametrize(
    ("code", "value", "message"),
    [
        (
            "raise RuntimeError('no GPU\\nand more')",
            "mine:Adapters",
            r"^mine of the package vitscope-mine 1\.2 failed \(RuntimeError: no "
            r"GPU\): update the package, or tell its authors$",
        ),
        ("", "mine:Adapters", r"failed \(AttributeError: module 'mine' has no attribute"),
        ("", "absent_module:Adapters", r"failed \(ModuleNotFoundError: No module named 'absent"),
        (LIBRARY, "mine:Wrapper", r"failed \(TypeError: .*missing 1 required positional"),
        (LIBRARY, "mine:Adapters", r"failed \(KeyError: 'small'\)"),
    ],
)
def test_a_fault_of_the_package_is_one_line(install, code, value, message):
    install(code, value=value)
    with pytest.raises(VitscopeError, match=message):
        load_model("mine:small")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "class Adapters:\n    def load(self, name):\n        pass\n",
            r"^mine:Adapters of the package vitscope-mine 1\.2 is no adapter: expected a class "
            r"with the methods load\(name\) and wrap\(module\)$",
        ),
        (
            "class Adapters:\n    def load(self, name):\n        return 1\n    wrap = load\n",
            r"^mine:Adapters of the package vitscope-mine 1\.2 returned a int: expected a ViTAdap",
        ),
    ],
)
def test_what_is_no_adapter_is_refused(install, code, message):
    install(code)
    with pytest.raises(UsageError, match=message):
        load_model("mine:small")


def test_what_the_adapter_itself_refuses_is_said_as_it_says_it(install):
    install("""
        from vitscope.errors import UnknownModelError

        class Adapters:
            def load(self, name):
                raise UnknownModelError(f"mine has no {name}")

            def wrap(self, module):
                raise AssertionError
    """)
    with pytest.raises(UnknownModelError, match=r"^mine has no small$"):
        load_model("mine:small")


def test_two_packages_for_one_library_are_refused(install):
    install()
    install(package="vitscope-other")
    message = (
        r"^several installed packages declare mine in vitscope.adapters \(vitscope-mine 1\.2, "
        r"vitscope-other 1\.2\): uninstall all but one$"
    )
    with pytest.raises(UsageError, match=message):
        load_model("mine:vit")
