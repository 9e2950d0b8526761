-- What becomes of an order after its payment: shipping, refunds, and the answers to commands.

-- Nothing here reads a table that may be large: what has to is in the next file, which locks nobody out.

alter table orders
    add column shipment bytea, -- orderflow.orders.v1.Shipment; null until it is shipped
    add column refunded_minor bigint not null default 0,
    add constraint orders_refunded_minor_check check (refunded_minor >= 0) not valid;

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
-- refund_due: money that was captured and that nobody asks to give back; the sweep does.
alter table payments
    drop constraint payments_state_check,
    add constraint payments_state_check
        check (state in ('intended', 'captured', 'declined', 'unknown', 'closed')) not valid,
    add column refund_due boolean not null default false;

-- Refunds, stored before the gateway is called. What is not refused counts against what was captured.
create table refunds (
    event_id uuid primary key, -- of the record that asked for it
    order_id uuid not null references orders,
    idempotency_key text not null unique,
    -- 'abandoned': an operator gave it up, and the money is kept
    state text not null check (state in ('intended', 'done', 'refused', 'abandoned')),
    amount_minor bigint not null check (amount_minor > 0),
    currency_code text not null,
    reason text not null default '',
    request_fingerprint bytea, -- of the command that asked, empty for the system's own; null: no command
    taken_up_by uuid, -- event_id of the sweep's record that goes on with it, if one does
    first_send_time timestamptz, -- null: nothing is out under the key
    update_time timestamptz not null
);
create index refunds_of_order on refunds (order_id);
