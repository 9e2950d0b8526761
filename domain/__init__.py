"""The rules of an order, without I/O: state table, money, validation, identifiers, kinds of failure."""
