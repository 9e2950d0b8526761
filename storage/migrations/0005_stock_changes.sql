-- What operators changed in stock and prices: the history, and the answer to a change that is repeated.

create table stock_changes (
    change_id bigint generated always as identity primary key,
    changed_by text not null,
    request_id text, -- null: not meant to be repeated
    kind text not null check (kind in ('set_stock', 'adjust_stock', 'set_price', 'remove_price')),
    sku text not null,
    quantity bigint, -- units, or the price in the currency's minor unit
    currency_code text not null,
    reason text not null,
    level jsonb not null, -- after the change: what was answered
    change_time timestamptz not null default now(),
    unique (changed_by, request_id)
);

create index stock_changes_of_sku on stock_changes (sku, change_id);
