"""What users import is documented in full: every argument, what is returned, what is raised."""

import inspect

import pytest

import vitscope

PUBLIC = [getattr(vitscope, name) for name in vitscope.__all__]


def list_functions(thing):
    if inspect.isclass(thing):
        for name, member in vars(thing).items():
            member = getattr(member, "__func__", member)
            if inspect.isfunction(member) and not name.startswith("_"):
                yield f"{thing.__name__}.{name}", member
    else:
        yield thing.__name__, thing


FUNCTIONS = dict(pair for thing in PUBLIC for pair in list_functions(thing))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_and_what_is_returned_are_documented(name):
    function = FUNCTIONS[name]
    doc = inspect.getdoc(function) or ""
    signature = inspect.signature(function)
    given = [p for p in signature.parameters.values() if p.name not in {"self", "cls"}]
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    for parameter in given:
        assert f"\n    {stars.get(parameter.kind, '')}{parameter.name}: " in doc, parameter
    if signature.return_annotation not in (None, "None"):
        assert "\nReturns:\n" in doc or "\nYields:\n" in doc
