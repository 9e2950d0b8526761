-- What becomes of an order after its payment: shipping, refunds, and the answers to commands.

alter table orders
    add column shipment bytea, -- orderflow.orders.v1.Shipment; null until it is shipped
    add column refunded_minor bigint not null default 0 check (refunded_minor >= 0);

-- What the sweep for expired orders reads: the orders that are PROCESSING.
create index orders_unpaid on orders (expire_time, order_id) where status = 2;

-- What a command came to, beside its outcome: who gave it waits for this.
create table command_answers (
    event_id uuid primary key,
    group_name text not null, -- whose outcome it is
    fingerprint bytea not null,
    refusal text not null, -- empty: done, or done before
    refused_status smallint not null, -- where the order stands that refused; 0 if that is not told
    answer_time timestamptz not null default now()
);

-- 'closed': nothing was charged, and the gateway will let nothing be charged under the key any more.
alter table payments drop constraint payments_state_check;
alter table payments add constraint payments_state_check
    check (state in ('intended', 'captured', 'declined', 'unknown', 'closed'));

-- Money that was captured and that nobody asks to give back; the sweep does.
alter table payments add column refund_due boolean not null default false;
create index payments_refund_due on payments (order_id) where refund_due;

-- Refunds, stored before the gateway is called. What is not refused counts against what was captured.
create table refunds (
    event_id uuid primary key, -- of the record that asked for it
    order_id uuid not null references orders,
    idempotency_key text not null unique,
    state text not null check (state in ('intended', 'done', 'refused')),
    amount_minor bigint not null check (amount_minor > 0),
    currency_code text not null,
    first_send_time timestamptz, -- null: nothing was ever sent under the key
    update_time timestamptz not null
);
create index refunds_of_order on refunds (order_id);
