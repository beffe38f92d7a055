package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// floor is the bare program: what any engine must do at least, and nothing else. It accepts a webhook (one shared commit
// before the 200), POSTs it, records the attempt (a shared commit), and sequences it into a Merkle log (a shared commit).
// There are no tenants, no verification, no retries, no fencing and no queue: a crash between two steps loses work.
type floor struct {
	db  *pgxpool.Pool
	url string // of the receiver
	// acceptOnly: nothing follows the commit.
	acceptOnly bool
	client     *http.Client
	accept     *postgres.Group[*floorEvent, struct{}]
	record     *postgres.Group[*floorEvent, struct{}]
	outgoing   chan *floorEvent
	leaves     chan [][]byte
	senders    sync.WaitGroup
	log        sync.WaitGroup
	attested   atomic.Int64
	failed     atomic.Pointer[error]
}

type floorEvent struct {
	id       uuid.UUID
	sequence string
	body     []byte
	status   int
	leafHash []byte
}

const floorSchema = `
drop table if exists floor_events, floor_attempts, floor_leaves, floor_head;
create table floor_events (id uuid primary key, sequence text not null, body bytea not null);
alter table floor_events alter column body set storage external;
create table floor_attempts (id uuid primary key, status integer not null, leaf_hash bytea not null);
create table floor_leaves (leaf_index bigint primary key, leaf_hash bytea not null);
create table floor_head (tree_size bigint not null, root_hash bytea not null);
insert into floor_head values (0, '');`

// floorSenders is how many POSTs may be under way.
const floorSenders = 128

func startFloor(ctx context.Context, db *pgxpool.Pool, receiver string, acceptOnly bool) (*floor, *http.Server, string, error) {
	if _, err := db.Exec(ctx, floorSchema); err != nil {
		return nil, nil, "", fmt.Errorf("make the floor's tables: %w", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, "", err
	}
	f := &floor{
		db: db, url: receiver, acceptOnly: acceptOnly, outgoing: make(chan *floorEvent, 100_000), leaves: make(chan [][]byte, 1000),
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: floorSenders, DisableCompression: true}},
	}
	f.accept = postgres.NewGroup(postgres.GroupConfig[*floorEvent, struct{}]{Commit: f.commitEvents, Size: f.size})
	f.record = postgres.NewGroup(postgres.GroupConfig[*floorEvent, struct{}]{Commit: f.commitAttempts, Size: f.size})
	for range floorSenders {
		f.senders.Go(f.send)
	}
	f.log.Go(f.sequence)
	server := &http.Server{Handler: f, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(listener) }()
	return f, server, "http://" + listener.Addr().String() + "/", nil
}

func (f *floor) size(e *floorEvent) int { return len(e.body) + 100 }

func (f *floor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	e := &floorEvent{id: id.New(), sequence: r.Header.Get(HeaderSequence), body: body}
	if _, err := f.accept.Do(r.Context(), e); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	if !f.acceptOnly {
		f.outgoing <- e
	}
	_, _ = fmt.Fprintf(w, `{"event_id":"%s"}`, e.id)
}

func (f *floor) commitEvents(ctx context.Context, events []*floorEvent) ([]struct{}, error) {
	rows := make([][]any, len(events))
	for i, e := range events {
		rows[i] = []any{e.id, e.sequence, e.body}
	}
	_, err := f.db.CopyFrom(ctx, pgx.Identifier{"floor_events"}, []string{"id", "sequence", "body"}, pgx.CopyFromRows(rows))
	return make([]struct{}, len(events)), err
}

// send POSTs events, one after the other, and records each.
func (f *floor) send() {
	for e := range f.outgoing {
		request, err := http.NewRequest(http.MethodPost, f.url, bytes.NewReader(e.body)) //nolint:noctx // the client's life is the run's
		if err != nil {
			f.fail(err)
			return
		}
		request.Header.Set(HeaderSequence, e.sequence)
		response, err := f.client.Do(request)
		if err != nil {
			f.fail(err)
			continue
		}
		_, _ = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
		e.status, e.leafHash = response.StatusCode, verify.LeafHash(fmt.Appendf(nil, "%s %d", e.id, response.StatusCode))
		if _, err := f.record.Do(context.Background(), e); err != nil {
			f.fail(err)
		}
	}
}

func (f *floor) commitAttempts(ctx context.Context, events []*floorEvent) ([]struct{}, error) {
	rows, hashes := make([][]any, len(events)), make([][]byte, len(events))
	for i, e := range events {
		rows[i], hashes[i] = []any{e.id, e.status, e.leafHash}, e.leafHash
	}
	_, err := f.db.CopyFrom(ctx, pgx.Identifier{"floor_attempts"}, []string{"id", "status", "leaf_hash"}, pgx.CopyFromRows(rows))
	if err == nil {
		f.leaves <- hashes
	}
	return make([]struct{}, len(events)), err
}

// sequence grows the log by what was recorded, all that waits in one commit.
func (f *floor) sequence() {
	tree, err := attestation.OpenTree(0, verify.EmptyRoot(), nil)
	if err != nil {
		f.fail(err)
		return
	}
	for hashes := range f.leaves {
		for more := true; more && len(hashes) < 2000; {
			select {
			case next, open := <-f.leaves:
				hashes, more = append(hashes, next...), open
			default:
				more = false
			}
		}
		if err := f.grow(tree, hashes); err != nil {
			f.fail(err)
			return
		}
		f.attested.Store(int64(tree.Size()))
	}
}

func (f *floor) grow(tree *attestation.Tree, hashes [][]byte) error {
	rows := make([][]any, len(hashes))
	for i, h := range hashes {
		rows[i] = []any{int64(tree.Size()) + int64(i), h}
	}
	growth, err := tree.Append(hashes)
	if err != nil {
		return err
	}
	return pgx.BeginFunc(context.Background(), f.db, func(tx pgx.Tx) error {
		_, err := tx.CopyFrom(context.Background(), pgx.Identifier{"floor_leaves"}, []string{"leaf_index", "leaf_hash"}, pgx.CopyFromRows(rows))
		if err != nil {
			return err
		}
		_, err = tx.Exec(context.Background(), "update floor_head set tree_size = $1, root_hash = $2", int64(growth.Size), growth.Root)
		return err
	})
}

func (f *floor) fail(err error) { f.failed.CompareAndSwap(nil, &err) }

// stop ends the floor when all that it accepted is sequenced.
func (f *floor) stop(server *http.Server) error {
	err := server.Shutdown(context.Background())
	f.accept.Close()
	close(f.outgoing)
	f.senders.Wait()
	f.record.Close()
	close(f.leaves)
	f.log.Wait()
	f.client.CloseIdleConnections()
	_, dropErr := f.db.Exec(context.Background(), "drop table if exists floor_events, floor_attempts, floor_leaves, floor_head")
	if first := f.failed.Load(); first != nil {
		return *first
	}
	return errors.Join(err, dropErr)
}
