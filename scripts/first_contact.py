"""Load every model whose weights lie in another project's repository, and compare it with what is claimed.

python scripts/first_contact.py [--data FOLDER_OR_HUB_ID] [--images 1000] [NAME ...]

Without --data only the structure is compared. What is found goes to model_cards/results/<name>.json, after each model,
so that a run that was stopped goes on where it stopped; hashes that the catalog lacks are printed.
"""

import argparse
from pathlib import Path

import zoo
from zoo import catalog
from zoo.errors import ZooError
from zoo.files import write_json

RESULTS = Path("model_cards/results")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these")
    parser.add_argument("--data", help="ImageNet's validation images: a folder of class folders, or a Hub id")
    parser.add_argument("--images", type=int, default=1000, help="of the data at most so many")
    arguments = parser.parse_args()
    failed = []
    for name in arguments.names or zoo.names(status="origin"):
        path = RESULTS / f"{name}.json"
        measured = catalog.results(catalog.info(name)).get("measured", {})
        if not arguments.names and path.exists() and ("top1" in measured or not arguments.data):
            continue
        print(name, flush=True)
        try:
            images = arguments.images if arguments.data else None
            found = zoo.verify(name, data=arguments.data, images=images, structure_only=arguments.data is None)
        except ZooError as error:
            failed.append(name)
            print(f"  {error}")
            continue
        for row in found.rows:
            print(f"  {row.figure}: {row.measured} (reported {row.reported}), {row.verdict}")
        for file, digest in zoo.load(name).zoo_entry.recipe["converted_from"]["sha256"].items():
            print(f"  sha256 of {file}: {digest}")
        write_json(path, found.report.to_json())
    print(f"failed: {', '.join(failed) or 'none'}")


if __name__ == "__main__":
    main()
