import copy

from recsys.evaluation import report
from recsys.evaluation.unknown import warnings_of
from tests.evaluation.test_report import RECORD


def test_a_share_above_the_limit_is_a_sentence_and_one_at_the_limit_is_none():
    assert warnings_of(words={"city": [500, 100], "brand": [0, 0]}, given={"rows": 1_000, "rejected": {"unknown_item": 100}}) == []
    (sentence,) = warnings_of(words={"city": [500, 100], "brand": [500, 101]})
    assert sentence.startswith("20% of the words in column 'brand' are unknown to the model (101 of 500). ")
    users, items = warnings_of(
        words={}, given={"rows": 1_000, "rejected": {"unknown_user": 900, "unknown_item": 101, "duplicate": 999}}
    )
    assert users.startswith("90% of the given candidates are of users that the shop does not know (900 of 1,000 rows)")
    assert items.startswith("10% of the given candidates are of items that the shop does not know (101 of 1,000 rows)")


def test_the_page_warns_of_what_is_unknown_and_else_does_not():
    assert "WARNING" not in report.render(RECORD)
    odd = copy.deepcopy(RECORD)
    odd["words"]["<age>"] = [10, 9]
    odd["given"]["rejected"]["unknown_user"] = 500
    page = report.render(odd)
    assert page.count("WARNING: ") == 2
    assert "90% of the words in column &#39;&lt;age&gt;&#39;" in page
    assert "WARNING" not in report.render({**RECORD, "given": None})
