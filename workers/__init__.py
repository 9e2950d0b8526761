"""The workers: one short module each, with the payment gateways and the notification channels beside them."""
