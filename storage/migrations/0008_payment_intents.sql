-- What a gateway that makes a charge in two steps has made under a payment's key: Stripe's PaymentIntent.

alter table payments
    add column gateway_intent text, -- null: nothing was made that could be confirmed
    add column gateway_closed boolean not null default false; -- nothing more is stored, and so nothing confirmed
