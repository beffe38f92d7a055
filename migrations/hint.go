package migrations

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// rights are statements that only a superuser can run and that a migration by the present user needs, all that are
// missing at once. The user creates the record of what was applied in schema
// public, kapsel_owner everything else.
const rights = `
with wanted (name, bypass) as (values ('kapsel_owner', false), ('kapsel_engine', true), ('kapsel_api', false)),
roles as (
	select w.name, w.bypass, r.oid, r.rolbypassrls from wanted w left join pg_roles r on r.rolname = w.name
)
select coalesce(string_agg(statement, ' ' order by step, name), '') from (
	select 1 step, name, format('create role %I nologin %s;', name, case when bypass then 'bypassrls' else 'nobypassrls' end) statement
		from roles where oid is null
	union all
	select 2, name, format('alter role %I bypassrls;', name) from roles where bypass and not rolbypassrls
	union all
	select 3, name, format('grant %I to %I;', name, current_user) from roles
		where oid is null or not pg_has_role(current_user, oid, 'member')
	union all
	select 4, '', format('grant usage, create on schema public to kapsel_owner, %I; grant usage on schema public to kapsel_engine, kapsel_api;', current_user)
		from pg_namespace n where nspname = 'public' and not pg_has_role(current_user, nspowner, 'usage')
			and not (has_schema_privilege(n.oid, 'create')
				and coalesce((select has_schema_privilege(r.oid, n.oid, 'create') from roles r where r.name = 'kapsel_owner'), false))
) missing`

// withHint adds what is to be done, which the driver leaves out: Postgres's own hint or, where a right is missing, all
// statements that a superuser has to run and not only the first one.
func withHint(ctx context.Context, db *sql.DB, err error) error {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return err
	}
	const insufficientPrivilege, raised = "42501", "P0001"
	if pgErr.Code == insufficientPrivilege || pgErr.Code == raised {
		var statements string
		if db.QueryRowContext(ctx, rights).Scan(&statements) == nil && statements != "" {
			pgErr.Hint = "As a superuser run: " + statements
		}
	}
	if pgErr.Hint == "" || strings.Contains(err.Error(), pgErr.Hint) {
		return err
	}
	return fmt.Errorf("%w. %s", err, pgErr.Hint)
}
