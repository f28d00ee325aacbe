"""The whole files of the two doors: sections that must agree."""

from typing import Annotated

from pydantic import Field, Strict, model_validator

from recsys.config.pairs import Pairs
from recsys.config.publishing import Champion, Export, Fairness, Gate, Notify, Privacy, Rank, Report, Run, Table
from recsys.config.rules import HISTORY_COLUMNS, RULES_BUILT_IN, AnyRule, BoughtRule, CapRule, ColumnRule, ExposureRule, RangeRule, Rule
from recsys.config.search import SPACE, Space
from recsys.config.section import Section
from recsys.config.shop import Candidates, Examples, Features, Shop, Signals, Window
from recsys.config.training import Calibration, Model, PairsTrain, Train

Exports = Annotated[tuple[Export, ...], Strict(False)]


class PairsSettings(Section):
    """Feature rows in, a model or a table out."""

    pairs: Pairs
    model: Model = Model()
    train: PairsTrain = PairsTrain()
    tune: Space = SPACE
    """What `jobs.tune` searches: keys of [model] and [train], each with a list of choices, or a range. The choice "absent" leaves the
    key out. Without a section [tune] it searches these:"""
    rank: Rank = Rank()
    table: Table = Table(path="var/pairs_recommendations")
    exports: Exports = ()
    """Where the lists are handed on to at the end of a night, as in the shop's file. Write [[exports]] once for each place:"""
    gate: Gate = Gate()
    run: Run = Run()

    @model_validator(mode="after")
    def _lists_are_plain(self) -> "PairsSettings":
        rank = self.rank
        for name, unset, why in (
            ("diversity", 0.0, "whose signals say which items are alike"),
            ("allow_repeats", None, "which knows what a user bought before"),
            ("candidates", None, "as here the feature rows are the candidates"),
        ):
            if (value := getattr(rank, name)) != unset:
                raise ValueError(f"rank.{name} needs the shop door, {why}, got {value!r}; remove it")
        for name in ("privacy", "even_groups"):
            if getattr(self.train, name) is not None:
                raise ValueError(f"train.{name} needs the shop door, whose fit knows which rows are of one user; remove it")
        return self


class Settings(Section):
    """Events, items and users in, a model or a table out."""

    shop: Shop
    features: Features = Features()
    window: Window = Window()
    signals: Signals = Signals()
    candidates: Candidates = Candidates()
    examples: Examples = Examples()
    model: Model = Model()
    train: Train = Train()
    tune: Space = SPACE
    """What `jobs.tune` searches: keys of [model] and [train], each with a list of choices, or a range. The choice "absent" leaves the
    key out. Keys of [window], [signals], [candidates] and [examples] stand in sections of their own, such as [tune.candidates]; with
    one of these, trials are judged by their lists instead of by the loss. Without a section [tune] it searches these:"""
    calibration: Calibration = Calibration()
    rank: Rank = Rank()
    rules: Annotated[tuple[Annotated[AnyRule, Field(discriminator="kind")], ...], Strict(False)] = ()
    """What no list may hold, whatever the model says. Write [[rules]] once for each; a drop is counted under the first rule that asks
    for it. Every rule has a name and a kind, and the keys of its kind:"""
    table: Table = Table()
    exports: Exports = ()
    """Where the lists are handed on to at the end of every run, published anew or not: what a place missed it gets then. One that fails
    is told, and fails nothing, as the night stands. Write [[exports]] once for each place:"""
    gate: Gate = Gate()
    champion: Champion = Champion()
    report: Report = Report()
    notify: Notify = Notify()
    privacy: Privacy = Privacy()
    fairness: Fairness = Fairness()
    run: Run = Run()

    @model_validator(mode="after")
    def _rules_fit_the_shop(self) -> "Settings":
        features, columns = self.features, self.shop.columns
        names = [rule.name for rule in self.rules]
        for rule in self.rules:
            where = f"rules '{rule.name}'"
            if rule.name in RULES_BUILT_IN:
                raise ValueError(f"{where}: a built-in rule has this name; choose another")
            if names.count(rule.name) > 1:
                raise ValueError(f"{where}: two rules have this name; give each its own")
            if isinstance(rule, BoughtRule) and rule.days > self.window.history_days:
                raise ValueError(
                    f"{where}: days must be at most window.history_days ({self.window.history_days}), got {rule.days}; "
                    "lower it, or set rank.allow_repeats = false"
                )
        for rule, of_items, column, number in self.rule_columns():
            where, table = f"rules '{rule.name}'", "items" if of_items else "users"
            if getattr(self.shop, table) is None:
                raise ValueError(f"{where} names column '{column}' but shop.{table} is absent; set shop.{table} or remove the rule")
            taken = (columns.item_id, columns.available, "item_id", "available") if of_items else (columns.user_id, *HISTORY_COLUMNS)
            words = features.item_categorical if of_items else features.user_categorical
            numbers = features.item_numeric if of_items else features.user_numeric
            words += tuple(c for _, items, c, is_number in self.rule_columns() if items == of_items and not is_number)
            if of_items and column == columns.name:
                words += (column,)
            elif of_items:
                taken += ("name",)  # what [shop.columns] names so is kept under this name
            if column in taken:
                todo = "that one is always obeyed, remove the rule" if column == columns.available else "rename it in the table"
                raise ValueError(f"{where}: column '{column}' cannot be a rule's; {todo}")
            if column in (words if number else numbers):
                one, other = ("a number", "words") if number else ("words", "numbers")
                raise ValueError(f"{where}: column '{column}' is {one} here and among the {other} elsewhere; write it as two columns")
        return self

    @model_validator(mode="after")
    def _floors_leave_places(self) -> "Settings":
        floors: dict[str, list[ExposureRule]] = {}
        for rule in self.rules:
            if isinstance(rule, ExposureRule) and rule.at_least:
                floors.setdefault(rule.column, []).append(rule)
        for column, rules in floors.items():
            values = [value for rule in rules for value in rule.values]
            total = sum(rule.at_least for rule in rules)
            if len(values) == len(set(values)) and total > 1 + 1e-9:  # of other values, so no item serves two
                raise ValueError(f"rules: floors for values of column '{column}' come to {total:g} of a list; lower at_least")
        return self

    def rule_columns(self) -> list[tuple[AnyRule, bool, str, bool]]:
        """Every column that a rule reads: the rule, whether it is of ITEMS (else of USERS), its name, whether it is a number."""
        found: list[tuple[AnyRule, bool, str, bool]] = []
        for rule in self.rules:
            if isinstance(rule, ColumnRule | RangeRule | CapRule | ExposureRule):
                found.append((rule, True, rule.column, isinstance(rule, RangeRule)))
            if isinstance(rule, Rule) and rule.audience is not None and rule.audience.column is not None:
                found.append((rule, False, rule.audience.column, False))
        return found

    @model_validator(mode="after")
    def _privacy_holds(self) -> "Settings":
        if self.train.privacy is not None and self.model.normalisation == "batch":
            raise ValueError('train.privacy: model.normalisation "batch" mixes users in each step; set "layer", or remove it')
        return self

    @model_validator(mode="after")
    def _groups_are_words_of_tables(self) -> "Settings":
        for table, groups, numbers in (
            ("users", self.fairness.user_groups, self.features.user_numeric),
            ("items", self.fairness.item_groups, self.features.item_numeric),
        ):
            if groups and getattr(self.shop, table) is None:
                raise ValueError(f"fairness.{table[:4]}_groups names columns but shop.{table} is absent; set it or remove them")
            if both := sorted(set(groups) & set(numbers)):
                raise ValueError(f"fairness: column '{both[0]}' is a number elsewhere and a word here; write it as two columns")
        return self

    @model_validator(mode="after")
    def _even_groups_are_audited(self) -> "Settings":
        column, known = self.train.even_groups, self.fairness.user_groups
        if column is not None and column not in known:
            raise ValueError(
                f"train.even_groups must be one of fairness.user_groups ({', '.join(known) or 'none'}), got {column!r}; add it"
            )
        return self

    @model_validator(mode="after")
    def _columns_are_named_once(self) -> "Settings":
        features, columns = self.features, self.shop.columns
        of_items = features.item_categorical + features.item_numeric + features.item_vectors
        of_users = features.user_categorical + features.user_numeric
        # what [shop.columns] calls the name is kept as `name`; a feature of that very column is the same words
        names = (columns.name,) if columns.name in features.item_numeric else ("name",) if columns.name != "name" else ()
        ours = {
            "item": {columns.item_id, "item_id", columns.available, "available", *names},
            "user": {columns.user_id, *HISTORY_COLUMNS},
        }
        for label, named in (("item", of_items), ("user", of_users)):
            twice = sorted({name for name in named if named.count(name) > 1})
            if twice:
                raise ValueError(f"features: {label} column '{twice[0]}' is named twice; name it once")
            taken = sorted(ours[label] & set(named))
            if taken:
                raise ValueError(f"features: {label} column '{taken[0]}' has a name that is ours; rename it in the table of {label}s")
        both = sorted(set(of_items) & set(of_users))
        if both:
            raise ValueError(f"features: column '{both[0]}' is one of items and one of users; rename it in one of the tables")
        if (features.user_categorical or features.user_numeric) and self.shop.users is None:
            raise ValueError("features names user columns but shop.users is absent; set shop.users or remove them")
        if bool(features.daily_numeric) != (self.shop.daily is not None):
            there, other = ("features.daily_numeric", "shop.daily")[:: 1 if features.daily_numeric else -1]
            raise ValueError(f"{there} goes with {other}, as one says where and the other which columns; set both or neither")
        if (features.item_categorical or features.item_numeric or features.item_vectors) and self.shop.items is None:
            raise ValueError("features names item columns but shop.items is absent; set shop.items or remove them")
        return self
