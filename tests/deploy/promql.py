"""What a PromQL expression names."""

import dataclasses

import promql_parser


@dataclasses.dataclass(frozen=True)
class Selector:
    """A metric that an expression reads, and the labels that it asks for or groups by."""

    metric: str
    labels: frozenset[str]


def selectors(expression: str) -> list[Selector]:
    """Returns the expression's selectors; each has the labels of all aggregations and matchings around it, too."""
    found: list[Selector] = []
    _collect(promql_parser.parse(expression), frozenset(), found)
    return found


def _collect(node: object, around: frozenset[str], found: list[Selector]) -> None:
    match node:
        case promql_parser.VectorSelector():
            assert node.name, "a selector names its metric"
            found.append(Selector(node.name, around | {matcher.name for matcher in node.matchers.matchers}))
        case promql_parser.MatrixSelector():
            _collect(node.vector_selector, around, found)
        case promql_parser.AggregateExpr():
            # What lies inside needs the labels of this aggregation; those outside of it are among them.
            _collect(node.expr, frozenset(node.modifier.labels) if node.modifier else frozenset(), found)
        case promql_parser.BinaryExpr():
            matched = node.modifier.matching.labels if node.modifier and node.modifier.matching else []
            for side in (node.lhs, node.rhs):
                _collect(side, around | frozenset(matched), found)
        case promql_parser.Call():
            for argument in node.args:
                _collect(argument, around, found)
        case promql_parser.ParenExpr() | promql_parser.UnaryExpr() | promql_parser.SubqueryExpr():
            _collect(node.expr, around, found)
        case promql_parser.NumberLiteral() | promql_parser.StringLiteral():
            pass
        case _:
            raise AssertionError(f"{type(node).__name__} is not looked into")
