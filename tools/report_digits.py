"""Print the worst error of every group of tests/digit_cases.py as a Markdown table.

Usage: python tools/report_digits.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from test_digits import PLACES, figures, markdown, worst


def main() -> int:
    errors = {}
    for group, column in PLACES:
        errors[group, column] = worst(figures(group, column))
        print(f"{group}, {' '.join(column)}", file=sys.stderr)
    print(markdown(errors))
    return 0


if __name__ == "__main__":
    sys.exit(main())
