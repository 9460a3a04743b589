"""Both published ways of counting, run on the dense models that their sources published: kmapp beside kmapp.

scripts/bench/run counting [--quick]
"""

import argparse

from zoo import catalog
from zoo.catalog.entry import Base
from zoo.measurement.conventions import COUNTINGS
from zoo.measurement.macs import measure
from zoo.structure.base import skeleton


def main() -> None:
    """Print a row for each dense model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one model of each source")
    most = 1 if parser.parse_args().quick else None
    print(f"{'':44}{'published':>10}{'counted':>10}{'off by':>9}   {'params (m)':>11}{'counted':>9}")
    for counting, count in COUNTINGS.items():
        print(f"\n{counting}")
        rows = [row for name in catalog.names(all=True, project=counting) for row in catalog.info(name).baselines]
        own = {row.of: row for row in rows if row.counting == counting and row.of.startswith("timm/")}
        for row in list(own.values())[:most]:
            model, size = skeleton(Base(row.of)), (3, row.input, row.input)
            kmapp, found = row.figures["kmapp"], count(model, size)
            params = measure(model, size).params / 1e6
            published = f"{row.of.removeprefix('timm/'):44}{kmapp:10.2f}{found:10.2f}{found / kmapp - 1:+9.3%}"
            print(f"{published}   {row.figures['params_m']:11.2f}{params:9.2f}")


if __name__ == "__main__":
    main()
