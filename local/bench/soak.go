package bench

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// soakEvery is how often a soak looks and prints a line.
const soakEvery = time.Minute

// mutable are the tables whose size must not depend on how much has passed through them.
var mutable = []string{"delivery_queue", "leaf_queue", "log_heads", "workers", "circuits", "delivery_commands"}

// soakSample is what a soak looks at.
type soakSample struct {
	cpu    int64 // nanoseconds a webhook since the last sample, of this process and of Postgres
	heap   int64 // bytes in use after a collection
	tasks  int64 // goroutines
	queue  int64 // rows in delivery_queue and leaf_queue
	tables int64 // bytes of the mutable tables with their indexes
}

// soak watches what must not grow.
type soak struct {
	samples  []soakSample
	meter    *meter
	used     usage // at the last sample
	accepted int64 // then
	err      error
	stop     context.CancelFunc
	ended    sync.WaitGroup
}

func startSoak(ctx context.Context, r *run, meter *meter, used usage) *soak {
	ctx, cancel := context.WithCancel(ctx)
	s := &soak{meter: meter, used: used, stop: cancel}
	s.ended.Go(func() {
		tick := time.NewTicker(soakEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if s.err = s.look(ctx, r); s.err != nil {
					return
				}
			}
		}
	})
	return s
}

// look takes a sample and prints it.
func (s *soak) look(ctx context.Context, r *run) error {
	used, err := s.meter.read(ctx)
	if err != nil {
		return err
	}
	accepted := r.ledger.accepted.Load()
	sample := soakSample{
		cpu:   int64(used.since(s.used).cpu) / max(accepted-s.accepted, 1),
		heap:  heapInUse() - r.ledger.bytes(), // what the benchmark itself remembers is not Kapsel's
		tasks: int64(runtime.NumGoroutine()),
	}
	if r.DB != nil {
		err := r.DB.QueryRow(ctx, `select (select count(*) from delivery_queue) + (select count(*) from leaf_queue),
			(select sum(pg_total_relation_size(t::regclass)) from unnest($1::text[]) t)::bigint`, mutable).Scan(&sample.queue, &sample.tables)
		if err != nil {
			return fmt.Errorf("look at %s: %w", strings.Join(mutable, ", "), err)
		}
	}
	s.used, s.accepted, s.samples = used, accepted, append(s.samples, sample)
	_, _ = fmt.Fprintf(r.Progress, "soak %3d min  accepted %d  delivered %d  CPU %.2f ms each  heap %d MiB  goroutines %d  queues %d rows  mutable tables %d KiB\n",
		len(s.samples), accepted, r.ledger.delivered.Load(), float64(sample.cpu)/1e6, sample.heap>>20, sample.tasks, sample.queue, sample.tables>>10)
	return nil
}

// heapInUse is the size of what is left after a collection.
func heapInUse() int64 {
	runtime.GC()
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	return int64(memory.HeapAlloc)
}

// end says whether anything grew: the last third of the samples against the second.
func (s *soak) end() error {
	s.stop()
	s.ended.Wait()
	if s.err != nil {
		return s.err
	}
	if len(s.samples) < 3 {
		return fmt.Errorf("a soak needs at least 3 minutes for something to grow; it had %d samples", len(s.samples))
	}
	third := len(s.samples) / 3
	middle, last := s.samples[third:2*third], s.samples[len(s.samples)-third:]
	for _, what := range []struct {
		name  string
		of    func(soakSample) int64
		slack int64
	}{
		{"nanoseconds of CPU a webhook", func(x soakSample) int64 { return x.cpu }, 0},
		{"heap bytes", func(x soakSample) int64 { return x.heap }, 32 << 20},
		{"goroutines", func(x soakSample) int64 { return x.tasks }, 200},
		{"queued rows", func(x soakSample) int64 { return x.queue }, 20_000},
		{"bytes of mutable tables", func(x soakSample) int64 { return x.tables }, 32 << 20},
	} {
		before, after := median(middle, what.of), median(last, what.of)
		if after > before*5/4+what.slack {
			return fmt.Errorf("%s grew from %d to %d", what.name, before, after)
		}
	}
	return nil
}

func median(samples []soakSample, of func(soakSample) int64) int64 {
	values := make([]int64, len(samples))
	for i, s := range samples {
		values[i] = of(s)
	}
	slices.Sort(values)
	return values[len(values)/2]
}
