"""Write the structures of the wheel: for each published pruned model a plan that keeps its macs and params.

python scripts/plans.py [NAME ...]

They stand in until a model is converted, whose widths are known only then.
"""

import sys

from tqdm import tqdm

from zoo import catalog
from zoo.files import write_json
from zoo.verbs.coverage import find_stand_in, targets


def main() -> None:
    for name in tqdm(sys.argv[1:] or targets()):
        description = find_stand_in(catalog.info(name))
        write_json(catalog.PLANS / f"{name}.json", {"base": description.base.id, "plan": description.plan.to_json()})


if __name__ == "__main__":
    main()
