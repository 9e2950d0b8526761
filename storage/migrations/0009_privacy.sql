-- What makes the system forget: erasures of users, and what is left of orders that were purged.

-- Drawn once, so that a list of hashes alone does not tell which of the user ids one can guess are in it.
create table user_hash_keys (
    only_row boolean primary key default true check (only_row),
    inner_key bytea not null,
    outer_key bytea not null
);
insert into user_hash_keys (inner_key, outer_key)
    select uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()),
        uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid());

create table erasures (
    user_hash bytea primary key, -- as storage/erasures.py makes it
    before_time timestamptz not null, -- of orders that were created before it the contact data is erased
    erase_time timestamptz not null default now()
);

-- Dead letters and the projector's failures whose bytes cannot be read and held an erased user's contact data: nothing
-- of them is kept, however often they are projected.
create table erased_records (
    topic text not null,
    partition integer not null,
    record_offset bigint not null,
    erase_time timestamptz not null default now(),
    primary key (topic, partition, record_offset)
);

-- What stays of an order that was purged, for good; its request_id and fingerprint stay in order_requests.
create table order_tombstones (
    order_id uuid primary key,
    caller text not null,
    status smallint not null,
    revision bigint not null,
    purge_time timestamptz not null default now()
);

-- The money stays when the order goes. Its rows are written under the order's lock, so they need no such check.
alter table payments drop constraint payments_order_id_fkey;
alter table payment_entries drop constraint payment_entries_order_id_fkey;
alter table refunds drop constraint refunds_order_id_fkey;

-- Outcomes keep nothing that tells who an order is for; those that were stored before may.
alter table outcomes add column holds_contact boolean not null default true;

alter table replay_claims add column claim_time timestamptz not null default now();
