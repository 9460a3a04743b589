"""The page of `zoo browse` in a real browser, opened from the disk: what it shows is what the catalog says."""

import json
import shutil

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from zoo import catalog
from zoo.pages.browse import rows, site

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium")

WIDE, PHONE = {"width": 1280, "height": 720}, {"width": 390, "height": 700}
MODEL = "digits_cnn_pruned_25"
MANY = 10_000
EVIL = "</script><script>document.title='taken'</script><img src=x onerror=document.title='taken'>"


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page of the catalog, with one model that was timed."""
    folder = tmp_path_factory.mktemp("page")
    site.write(site.files([*rows.of_catalog({MODEL: 1.5, "digits_cnn": 2.5})]), folder)
    return folder


@pytest.fixture
def visit(browser, folder):
    """A function that opens the page; whatever it says on the console or asks of others fails the test."""
    complaints, asked, contexts = [], [], []

    def visit(fragment="", folder=folder, viewport=WIDE, color_scheme="light"):
        context = browser.new_context(viewport=viewport, color_scheme=color_scheme)
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{(folder / site.PAGE).as_uri()}{fragment}")
        page.wait_for_selector("#grid [role=row] [role=gridcell]")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(("file:///", "data:"))] == []


def shown(page):
    """The names of the rows that are made, from the top."""
    return page.locator("#grid .tabulator-row .name").all_inner_texts()


def counted(page, said):
    page.wait_for_function("said => document.getElementById('count').textContent === said", arg=said)


def focused(page, index):
    """Wait until the row of this aria-rowindex, where the head is 1, has the focus."""
    page.wait_for_function("at => document.activeElement.getAttribute('aria-rowindex') === String(at)", arg=index)


def violations(page):
    """What axe finds: rule and elements."""
    found = Axe().run(page, options={"preload": False, "resultTypes": ["violations"]}).response["violations"]
    return [(each["id"], [node["html"] for node in each["nodes"]]) for each in found]


def test_a_click_on_a_head_sorts_and_the_unknown_come_last(visit):
    page = visit()
    head = page.get_by_role("columnheader", name="MACs")
    expected = catalog.names(all=True, sort="macs")
    known = [name for name in expected if catalog.size(catalog.info(name)).macs]

    head.get_by_role("button").click()
    page.wait_for_selector("[tabulator-field=macs][aria-sort=ascending]")
    assert shown(page)[:5] == expected[:5]
    indices = [row.get_attribute("aria-rowindex") for row in page.locator("#grid .tabulator-row").all()]
    assert indices == [str(2 + i) for i in range(len(indices))]

    head.get_by_role("button").press("Enter")
    page.wait_for_selector("[tabulator-field=macs][aria-sort=descending]")
    largest = max(catalog.size(catalog.info(name)).macs for name in known)
    assert catalog.size(catalog.info(shown(page)[0])).macs == largest


def test_filters_leave_what_the_catalog_lists_and_the_count_is_said(visit):
    page = visit()
    expected = catalog.names("resnet", all=True, method="integer", base="torchvision")

    page.get_by_label("Search").fill("resnet torchvision")
    page.get_by_label("Method").select_option("integer")
    counted(page, f"{len(expected)} of {len(catalog.names(all=True))} models")
    assert sorted(shown(page)) == sorted(expected)
    assert page.get_by_role("status").get_attribute("aria-live") == "polite"

    page.get_by_role("button", name="Reset").click()
    counted(page, f"{len(catalog.names(all=True))} models")
    page.get_by_label("Params, at most").fill("10M")
    counted(page, f"{len(catalog.names(all=True, max_params=1e7))} of {len(catalog.names(all=True))} models")


def test_a_point_of_the_plot_opens_its_model_and_brings_its_row_into_view(visit):
    page = visit("#task=image-classification")
    name = "resnet50d_pruned_56"
    place = page.evaluate(
        """name => browse.chart.data.datasets.flatMap((set, i) =>
             set.data.map((point, j) => [point.row.id, browse.chart.getDatasetMeta(i).data[j]]))
           .filter(([id]) => id === name).map(([, {x, y}]) => ({x, y}))[0]""",
        name,
    )

    page.locator("#canvas").click(position=place)
    assert page.locator("#panel-title").inner_text() == name
    page.locator(f"#grid .tabulator-row[aria-selected=true] .name >> text={name}").wait_for()


@pytest.mark.parametrize("cost", ["macs", "params"])
def test_the_front_is_of_those_that_no_other_beats_on_the_same_data(visit, cost):
    page = visit(f"#x={cost}")
    found = [each for each in rows.of_catalog({}) if each.figure == "top1" and each.data == "ILSVRC/imagenet-1k"]
    points = [(getattr(each, cost), -each.accuracy, each.name) for each in found if getattr(each, cost)]
    best = [(c, a, n) for c, a, n in points if not any(x <= c and y <= a and (x, y) != (c, a) for x, y, _ in points)]

    chips = page.locator("#front button").all_inner_texts()
    assert {(c, a) for c, a, n in best if n in chips} == {(c, a) for c, a, _ in best}
    assert len(chips) == len({(c, a) for c, a, _ in best})


def test_reported_figures_are_hollow_and_measured_ones_filled_everywhere(visit):
    page = visit("#q=pruned")
    told = {each.name: each for each in rows.of_catalog({})}

    for row in page.locator("#grid .tabulator-row").all()[:8]:
        each = told[row.locator(".name").inner_text()]
        mark = row.locator("[tabulator-field=accuracy] .mark")
        expected = "reported" if each.figure in each.reported else "measured"
        assert mark.get_attribute("class") == f"mark {expected}"
        assert expected in row.locator("[tabulator-field=accuracy]").inner_text()  # for ears
    fills = """() => browse.chart.data.datasets.filter(set => set.pointStyle).flatMap(set =>
               set.data.map((point) => [point.row.id, set.pointBackgroundColor]))"""
    for name, fill in page.evaluate(fills):
        assert (fill == "transparent") == (told[name].figure in told[name].reported)


def test_keys_alone_go_through_the_table_open_a_model_and_come_back(visit):
    page = visit()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # skip to the table
    last = len(catalog.names(all=True)) + 1
    for key, at in (("ArrowDown", 2), ("PageDown", 14), ("End", last), ("Home", 2), ("ArrowDown", 3)):
        page.keyboard.press(key)
        focused(page, at)
    second = catalog.names(all=True)[1]

    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "panel-title"
    assert page.locator("#panel-title").inner_text() == second

    page.keyboard.press("Escape")
    focused(page, 3)
    assert page.locator("#panel").is_hidden()


def test_a_panel_has_the_load_line_the_figures_what_was_cut_and_the_card(visit):
    page = visit()
    page.get_by_label("Search").fill(MODEL)
    page.get_by_role("link", name=MODEL, exact=True).click()
    panel = page.get_by_role("complementary")
    measured = catalog.results(catalog.info(MODEL))["measured"]

    assert panel.locator(".load code").inner_text() == f'zoo.load("{MODEL}")'
    assert f"{measured['params']:,}" in panel.inner_text()
    assert panel.get_by_role("img").locator("i").count() == 15
    panel.get_by_text("All layers").click()
    assert "24 → 3" in panel.inner_text()
    assert "zoo verify" in panel.locator(".card").inner_text()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    panel.get_by_role("button", name="Copy").click()
    panel.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == f'zoo.load("{MODEL}")'


def test_the_address_holds_what_is_seen_and_gives_it_back(visit):
    page = visit()
    page.get_by_label("Search").fill("digits")
    page.get_by_label("Method").select_option("prune")
    page.get_by_role("combobox", name="against").select_option("params")
    counted(page, f"{len(catalog.names('digits', method='prune'))} of {len(catalog.names(all=True))} models")
    page.get_by_role("columnheader", name="Params").get_by_role("button").click()
    page.locator("#grid .name >> text=digits_vit_pruned_50").click()
    seen = (shown(page), page.locator("#count").inner_text(), page.locator("#panel").inner_text())

    page.reload()
    shared = visit(f"#{page.url.partition('#')[2]}")
    for each in (page, shared):
        each.wait_for_selector("[tabulator-field=params][aria-sort=ascending]")
        assert (shown(each), each.locator("#count").inner_text(), each.locator("#panel").inner_text()) == seen
        assert each.get_by_label("Method").input_value() == "prune"
        assert each.get_by_role("combobox", name="against").input_value() == "params"

    page.evaluate("location.hash = '#q=vit'")  # an address that is typed
    counted(page, f"{len(catalog.names('vit', all=True))} of {len(catalog.names(all=True))} models")
    page.go_back()
    counted(page, seen[1])
    assert page.locator("#panel-title").inner_text() == "digits_vit_pruned_50"


def test_of_ten_thousand_rows_those_in_sight_are_made(visit, tmp_path):
    made = [
        rows.Row(
            f"m{i:05}", f"m{i:05}", "image-classification", "prune", "origin", macs=1e6 + i, accuracy=0.5, figure="top1"
        )
        for i in range(MANY)
    ]
    site.write(site.files(made), tmp_path / "many")
    page = visit(folder=tmp_path / "many")

    page.locator(".tabulator-tableholder").focus()
    for key, at in (("Home", 0), ("End", MANY - 1), ("PageUp", MANY - 13)):
        page.keyboard.press(key)
        focused(page, at + 2)
        assert page.locator("#grid .tabulator-row").count() < 100
    page.mouse.move(700, 650)
    page.mouse.wheel(0, -38 * 5_000)
    page.wait_for_function("() => document.querySelector('#grid .tabulator-row').innerText < 'm06'")
    assert page.locator("#grid").get_attribute("aria-rowcount") == str(MANY + 1)


@pytest.mark.parametrize(
    ("viewport", "scheme", "fragment"),
    [
        (WIDE, "light", f"#open={MODEL}"),
        (WIDE, "dark", f"#open={MODEL}"),
        (PHONE, "light", ""),
        (PHONE, "dark", f"#open={MODEL}"),
    ],
    ids=["wide", "dark", "phone", "open on a phone"],
)
def test_axe_finds_nothing(visit, viewport, scheme, fragment):
    page = visit(fragment, viewport=viewport, color_scheme=scheme)
    assert page.locator("#panel-title").count() == len(fragment[:1])

    assert violations(page) == []


def test_axe_finds_nothing_where_no_model_fits(visit):
    page = visit()
    page.get_by_label("Search").fill("there is none of this name")
    page.get_by_text("No model fits").wait_for()

    assert violations(page) == []


def test_a_phone_scrolls_one_way_and_its_back_button_closes_a_model(visit):
    page = visit(viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]

    page.locator("#grid .name a").first.click()
    assert page.locator("#panel").bounding_box() == {"x": 0, "y": 0, **PHONE}
    assert page.locator("#main").get_attribute("inert") is not None  # what it covers
    page.go_back()
    page.locator("#panel").wait_for(state="hidden")
    assert page.locator("#main").get_attribute("inert") is None


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_a_long_name_begins_at_its_beginning_and_heads_are_whole(visit, tmp_path, viewport):
    name = f"a_model_{'that_has_a_name_' * 6}v2"
    long = rows.Row(
        *(name, name, "image-classification", "prune", "recipe"),
        base=f"timm/{name}",
        macs=1e6,
        accuracy=0.5,
        figure="top1",
        data="digits",
    )
    site.write(site.files([long]), tmp_path / "long")
    page = visit(folder=tmp_path / "long", viewport=viewport)
    cell = page.locator("#grid .tabulator-cell.name")
    counted(page, "1 model")
    assert page.locator("#plot-said").inner_text() == "1 model by top-1 on digits."
    outer, inner = (each.bounding_box() for each in (cell, cell.locator("span")))

    assert outer["y"] <= inner["y"]
    assert inner["y"] + inner["height"] <= outer["y"] + outer["height"]
    cut = "heads => heads.filter((head) => head.scrollWidth > head.clientWidth).map((head) => head.innerText)"
    assert page.locator("#grid .tabulator-col-title").evaluate_all(cut) == []


def test_no_number_of_a_card_is_broken_on_a_phone(visit):
    page = visit("#open=scenes_yolov8_pruned_50", viewport=PHONE)
    lines = """cells => cells.map((cell) => {
      const [text, all] = [cell.firstChild, document.createRange()];
      all.setStart(text, text.data.indexOf("("));
      all.setEnd(text, text.length);
      return all.getClientRects().length;
    })"""
    found = page.locator("#panel .card td[align=right] >> text=/[(]/").evaluate_all(lines)

    assert len(found) >= 6
    assert {*found} == {1}
    assert page.evaluate("document.querySelector('#panel').scrollWidth") == PHONE["width"]
    assert violations(page) == []


def test_a_low_window_keeps_the_panel_whole(visit):
    page = visit("#open=scenes_yolov8_pruned_50", viewport={"width": 901, "height": 560})
    page.locator("#grid .tabulator-row[aria-selected=true]").wait_for()

    assert page.evaluate("document.documentElement.scrollHeight") == 560
    assert page.locator("#panel").bounding_box()["y"] == 0


def test_latency_is_a_column_and_an_axis_where_it_is_known(visit, tmp_path):
    page = visit("#x=ms&q=digits_cnn&sort=ms")
    page.wait_for_selector("[tabulator-field=ms][aria-sort=ascending]")
    assert shown(page)[:2] == [MODEL, "digits_cnn"]
    assert sorted(page.locator("#front button").all_inner_texts()) == ["digits_cnn", MODEL]

    site.write(site.files([*rows.of_catalog({})]), tmp_path / "untimed")
    page = visit("#x=ms", folder=tmp_path / "untimed")
    assert page.locator("[tabulator-field=ms]").count() == 0
    assert page.locator("#x option").all_inner_texts() == ["MACs", "parameters"]
    assert page.locator("#x").input_value() == "macs"


def test_an_address_that_says_nonsense_is_as_none(visit):
    expected = shown(visit())
    page = visit("#sort=__proto__&dir=up&x=beauty&open=nobody&constructor=1&%%%")

    assert shown(page) == expected
    assert page.locator("#panel").is_hidden()
    assert page.locator("#x").input_value() == "macs"


def test_nothing_that_an_author_wrote_is_markup(visit, tmp_path):
    entry = catalog.EMBEDDED / MODEL
    repository = shutil.copytree(entry, tmp_path / "evil")
    config = json.loads((repository / "config.json").read_text())
    config["pretrained_cfg"]["license"] = config["zoo"]["base"]["id"] = config["zoo"]["task"] = EVIL
    (repository / "config.json").write_text(json.dumps(config))
    (repository / "README.md").write_text(
        f"# evil\n\n{EVIL}\n\n[x](javascript:alert(1)) ![y](https://elsewhere/z.png)\n"
    )
    site.write(site.files([rows.of_folder(repository, "./evil")]), tmp_path / "page")
    page = visit("#open=./evil", folder=tmp_path / "page")

    assert page.title() == "Compressed vision models"
    assert EVIL in page.locator("#panel dl").inner_text()
    assert EVIL in page.locator("#panel .card").inner_text()
    assert page.locator("#panel img").count() == page.locator("#panel a").count() == 0
