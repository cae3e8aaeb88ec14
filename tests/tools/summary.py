"""Adds up the results of one `./dev test` and ends with the line "N passed, N failed".

Reads the JUnit files of ctest and pytest and the one-word files of build and fuzz steps from the given folder. Exits 1 when
anything failed, or when a result that must be there is missing (a suite that did not run has not passed).
"""
import pathlib
import sys
import xml.etree.ElementTree as ET

EXPECTED = ["release.xml", "asan.xml", "tsan.xml", "pytest.xml", "server-asan.xml", "server-tsan.xml"]


def main(folder):
    passed, failures = 0, []
    for name in EXPECTED:
        path = folder / name
        if not path.exists():
            failures.append(f"{name}: no results")
            continue
        cases = list(ET.parse(path).getroot().iter("testcase"))
        if not cases:
            failures.append(f"{name}: no tests")
        for case in cases:
            label = f"{path.stem}: {case.get('classname', '')}::{case.get('name')}"
            if case.get("status") in ("fail", "disabled", "notrun") or case.find("failure") is not None or case.find("error") is not None:
                failures.append(label)
            elif case.find("skipped") is not None:
                failures.append(label + " (skipped)")
            else:
                passed += 1
    for path in sorted(folder.glob("*.step")):
        if path.read_text().strip() == "passed":
            passed += 1
        else:
            failures.append(path.stem)
    for failure in failures:
        print("FAILED", failure)
    print(f"{passed} passed, {len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
