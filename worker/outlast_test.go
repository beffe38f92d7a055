package worker

import (
	"context"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/kapsel-io/kapsel/activities"
	"github.com/kapsel-io/kapsel/migrations"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/pgserver"
)

// Everything that asks Postgres several times a second goes on by itself when it is back, and has told of its absence once.
func TestLoopsOutlastPostgres(t *testing.T) {
	t.Parallel()
	config := pgserver.Config{Dir: filepath.Join(t.TempDir(), "postgres"), Settings: map[string]string{"fsync": "off"}}
	server, err := pgserver.Start(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(func() { _ = server.Stop(context.Background()) })
	_, err = migrations.Up(t.Context(), server.URL("postgres"), 2)
	require.NoError(t, err)
	db, err := postgres.Open(server.URL("postgres"), postgres.Engine, 8)
	require.NoError(t, err)
	defer db.Close()

	core, logged := observer.New(zapcore.InfoLevel)
	log := zap.New(core)
	lease := NewLease(db, "test", log)
	permits := activities.NewPermits(10, lease.Holder)
	ctx, stop := context.WithCancel(t.Context())
	var loops sync.WaitGroup
	dispatcher := &Dispatcher{
		db: db, lease: lease, latencies: activities.NewLatencies(), log: log, limit: 10, metrics: newMetrics(nil),
		places: places{permits: permits}, wake: make(chan struct{}, 1), inFlight: map[uuid.UUID]*flight{},
	}
	for _, run := range []func(context.Context){
		lease.Run, dispatcher.Run, (&divider{db: db, lease: lease, permits: permits, log: log}).run,
		(&Commander{db: db, log: log}).Run, (&Redeliverer{db: db, log: log}).Run,
		(&Sweeper{db: db, log: log, every: 100 * time.Millisecond}).Run, postgres.NewWatch(nil, db).Run,
	} {
		loops.Go(func() { run(ctx) })
	}
	defer loops.Wait()
	defer stop()
	require.Eventually(t, lease.Alive, 20*time.Second, 10*time.Millisecond)

	config.Port = server.Port()
	require.NoError(t, server.Stop(t.Context()))
	require.Eventually(t, func() bool { return !lease.Alive() }, 30*time.Second, 50*time.Millisecond, "others may have what it carries")
	server, err = pgserver.Start(t.Context(), config)
	require.NoError(t, err)
	require.Eventually(t, lease.Alive, 30*time.Second, 10*time.Millisecond)
	recovered := []string{"renew lease", "claim", "carry out commands", "take steps of redeliveries", "sweep"}
	for _, what := range recovered {
		require.Eventually(t, func() bool { return logged.FilterMessage("works now: "+what).Len() == 1 }, 30*time.Second, 50*time.Millisecond, what)
		require.Equal(t, 1, logged.FilterMessage("not now: "+what).Len(), what)
	}
}
