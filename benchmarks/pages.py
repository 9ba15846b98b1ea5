"""Put results into a page, between its two marks."""

MARKS = ("<!-- results -->", "<!-- end of results -->")


def with_results(page: str, results: str, marks: tuple[str, str] = MARKS) -> str:
    """Replace the results in the text of a page, which stand between its two marks.

    Raises:
        ValueError: If the page lacks a mark.
    """
    before, start, rest = page.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (start and end):
        raise ValueError(f"the page lacks its marks {' and '.join(marks)}")
    return f"{before}{start}\n\n{results}\n{end}{after}"
