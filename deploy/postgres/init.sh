#!/bin/sh
# Runs once, when the volume is empty: Kapsel and Temporal each get databases, and a user that sees nothing of the other's.
set -eu
psql -v ON_ERROR_STOP=1 -q -d postgres -U "$POSTGRES_USER" \
  -v kapsel_password="$KAPSEL_DB_PASSWORD" -v temporal_password="$TEMPORAL_DB_PASSWORD" <<'SQL'
create role kapsel_owner nologin nobypassrls;
create role kapsel_engine nologin bypassrls;
create role kapsel_api nologin nobypassrls;
create role kapsel login password :'kapsel_password';
grant kapsel_owner, kapsel_engine, kapsel_api to kapsel;
create role temporal login password :'temporal_password';
create database kapsel owner kapsel;
create database temporal owner temporal;
create database temporal_visibility owner temporal;
revoke connect on database kapsel, temporal, temporal_visibility from public;
SQL
