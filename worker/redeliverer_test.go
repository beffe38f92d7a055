package worker

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/postgrestest"
)

// A worker removes what is over for long soon after it has started, however much it is, and no job that isn't over.
func TestOldJobsAreRemoved(t *testing.T) {
	t.Parallel()
	url := postgrestest.New(t)
	owner, engine := postgrestest.Pool(t, url, postgres.Owner), postgrestest.Pool(t, url, postgres.Engine)
	log, err := admin.CreateLog(t.Context(), owner, admin.LogConfig{Host: "kapsel.example", KeyDir: t.TempDir(), HighWaterDir: t.TempDir()})
	require.NoError(t, err)
	tenant, err := admin.CreateTenant(t.Context(), owner, "Example Bank", log.ID)
	require.NoError(t, err)
	const job = `insert into redelivery_jobs (id, tenant_id, states, accepted_from, accepted_until, rate_per_second, state, cursor_event, next_at, finished_at)
		select gen_random_uuid(), $1, '{dead}', now() - interval '1 day', now(), 1, $2, gen_random_uuid(), now() + interval '1 day', now() - $3::interval
		from generate_series(1, $4)`
	finished := "8 days"
	for _, j := range []struct {
		state    string
		finished *string
		n        int
	}{{"done", &finished, 2300}, {"running", nil, 2}} {
		_, err := owner.Exec(t.Context(), job, tenant, j.state, j.finished, j.n)
		require.NoError(t, err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	r := &Redeliverer{db: engine, log: zap.NewNop(), onDue: func() {}}
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	left := func() (n int) {
		require.NoError(t, owner.QueryRow(t.Context(), "select count(*) from redelivery_jobs").Scan(&n))
		return n
	}
	require.Eventually(t, func() bool { return left() == 2 }, 30*time.Second, 50*time.Millisecond)
	stop()
	<-done
	require.Equal(t, 2, left())
}
