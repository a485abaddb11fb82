"""The demo's real text, on this very interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap

import pytest

from fedot.data.python_library import CLIENT_PACKAGES, LibraryText, library_text


@pytest.fixture(scope="module")
def text() -> LibraryText:
    return library_text()


def test_clients_are_the_four_pairs_of_packages(text):
    assert set(text.clients) == set(CLIENT_PACKAGES)
    assert len(text.clients) == 4


def test_every_client_has_records_enough(text):
    assert all(len(records) >= 450 for records in text.clients.values())
    assert len(text.proxy) >= 200


def test_no_text_stands_twice_whoever_has_it(text):
    owners: dict[str, str] = {}
    for name, records in {"proxy": text.proxy, **text.clients}.items():
        for record in records:
            key = " ".join(record.split())
            assert key not in owners, f"{name} has a text of {owners[key]}"
            owners[key] = name


def test_record_is_one_definition(text):
    odd = []
    for record in text.clients["email+http"][:200]:
        try:
            tree = ast.parse(record)
        except SyntaxError:  # a class's head whose body is only its methods
            tree = ast.parse(record + "\n    pass")
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        odd += [] if isinstance(tree.body[0], kinds) else [record]
    assert not odd


def test_records_are_long_enough_to_learn_from(text):
    assert min(len(r) for records in text.clients.values() for r in records) >= 80


def test_general_text_holds_nothing_that_a_client_or_the_proxy_owns(text):
    general = "\n".join(text.general)
    squeezed = " ".join(general.split())
    for records in (text.proxy, *text.clients.values()):
        # Records as long as this are not written twice by chance.
        long = [" ".join(r.split()) for r in records if len(r) > 400][:60]
        assert len(long) > 20
        assert not [record for record in long if record in squeezed]


def test_general_text_is_enough_to_pretrain_on_and_holds_the_documentation(text):
    assert 1_000_000 < sum(map(len, text.general)) < 20_000_000
    assert any("with" in t and "statement" in t and "context manager" in t for t in text.general)


def test_same_interpreter_gives_the_same_text_in_the_same_order(text):
    assert library_text() == text


def test_interpreter_without_documentation_is_refused_with_the_way_out():
    script = """
        import sys

        class Stripped:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "pydoc_data":
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Stripped())
        from fedot.data.python_library import library_text
        from fedot.errors import ConfigError
        try:
            library_text()
        except ConfigError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("this Python has no pydoc_data")
    assert "fedot demo --data DIR" in done.stdout
    assert done.stdout.count("\n") == 1


def test_interpreter_without_sources_is_refused_with_the_way_out(tmp_path):
    script = f"""
        import sysconfig

        paths = sysconfig.get_paths()
        sysconfig.get_paths = lambda: paths | {{"stdlib": {str(tmp_path)!r}}}
        from fedot.data.python_library import library_text
        from fedot.errors import ConfigError
        try:
            library_text()
        except ConfigError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert "has no sources (.py)" in done.stdout
    assert "fedot demo --data DIR" in done.stdout
