"""Tables of the book sort by a click on a heading."""

from helpers.paths import ROOT

PAGE = """<!doctype html><meta charset=utf-8><title>tables</title><div class="bd-content">{}</div><script>{}</script>"""
TABLE = """<table id="t"><thead><tr><th></th><th>PSNR</th><th>speed</th></tr></thead><tbody>
<tr><th>b</th><td>9.5 [9.1, 9.9]</td><td>1.10x</td></tr><tr><th>a</th><td>31.0 [30, 32]</td><td></td></tr>
<tr><th>c</th><td>inf</td><td>1,200x</td></tr><tr><th>d</th><td>-2.5</td><td>1.9x</td></tr></tbody></table>"""
PANDAS = """<table id="t"><thead><tr><th></th><th>x</th></tr><tr><th>method</th><th></th></tr></thead><tbody>
<tr><th>b</th><td>2</td></tr><tr><th>a</th><td>10</td></tr><tr><th>c</th><td>1</td></tr></tbody></table>"""
SPANS = TABLE.replace("<tr><th>b</th>", "<tr><th rowspan=2>b</th>")


def opened(browser, table: str, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(PAGE.format(table, (ROOT / "book/_static/tables.js").read_text()))
    page = browser.new_page()
    page.goto(file.as_uri())
    return page


def order(page) -> list[str]:
    return page.eval_on_selector_all("#t tbody tr", "rows => rows.map(row => row.cells[0].textContent)")


def test_numbers_sort_as_numbers_and_back(browser, tmp_path):
    page = opened(browser, TABLE, tmp_path)
    page.click("text=PSNR")
    assert order(page) == ["d", "b", "a", "c"]
    assert page.get_attribute("th:has-text('PSNR')", "aria-sort") == "ascending"
    page.click("text=PSNR")
    assert order(page) == ["c", "a", "b", "d"]
    page.click("text=PSNR")
    assert order(page) == ["b", "a", "c", "d"]  # as it was written
    page.click("text=speed")
    assert order(page) == ["b", "d", "c", "a"]  # an empty cell comes last
    page.click("text=speed")
    assert order(page) == ["c", "d", "b", "a"]


def test_the_keyboard_sorts_too(browser, tmp_path):
    page = opened(browser, TABLE, tmp_path)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert order(page) == ["d", "b", "a", "c"]


def test_headings_of_pandas_in_two_rows(browser, tmp_path):
    page = opened(browser, PANDAS, tmp_path)
    page.click("button:has-text('x')")
    assert order(page) == ["c", "b", "a"]


def test_a_table_with_joined_cells_is_left_alone(browser, tmp_path):
    assert opened(browser, SPANS, tmp_path).query_selector("button") is None
