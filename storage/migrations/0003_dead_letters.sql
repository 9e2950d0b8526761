-- What became of dead letters, plans to replay them, and which copy of a replay counts.

create table dead_letter_resolutions (
    partition integer not null,
    record_offset bigint not null,
    state smallint not null, -- orderflow.operations.v1.DeadLetterState
    resolved_by text not null,
    reason text not null,
    resolve_time timestamptz not null default now(),
    primary key (partition, record_offset)
);

create table replay_plans (
    plan_id uuid primary key,
    filter bytea not null, -- orderflow.operations.v1.DeadLetterFilter
    created_by text not null,
    create_time timestamptz not null default now(),
    aborted boolean not null default false
);

create table replay_plan_items (
    plan_id uuid not null references replay_plans,
    partition integer not null,
    record_offset bigint not null,
    state text not null default 'waiting' check (state in ('waiting', 'replayed', 'skipped')),
    primary key (plan_id, partition, record_offset)
);

-- The first copy of a replay that is consumed claims it, with its own coordinates; other copies emit nothing.
create table replay_claims (
    group_name text not null,
    origin_topic text not null,
    origin_partition integer not null,
    origin_offset bigint not null,
    replay integer not null,
    topic text not null,
    partition integer not null,
    record_offset bigint not null,
    primary key (group_name, origin_topic, origin_partition, origin_offset, replay)
);
