package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/kapsel-io/kapsel/admin"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/db"
	"github.com/kapsel-io/kapsel/verify"
)

// state is what the first start made, kept in local.json (mode 0600: it holds an API key).
type state struct {
	LogID     string `json:"log_id"`
	Origin    string `json:"origin"`
	PublicKey string `json:"public_key"` // hex
	VKey      string `json:"vkey"`
	TenantID  string `json:"tenant_id"`
	APIKey    string `json:"api_key"`
}

// lockDir makes the directory and takes its lock, which ends with the process: one stack at a time uses it. The PID is
// for people and tests that want to kill the process.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("another process uses %s; stop it, or choose another directory with --dir", dir)
	}
	pid := strconv.Itoa(os.Getpid()) + "\n"
	return lock, os.WriteFile(filepath.Join(dir, "pid"), []byte(pid), 0o600)
}

// prepareState returns what an earlier start made, or makes it. A crash in between leaves a log without a tenant, which
// the next start goes on with.
func prepareState(ctx context.Context, owner *pgxpool.Pool, dir string) (state, error) {
	path := filepath.Join(dir, "local.json")
	saved, err := os.ReadFile(path)
	if err == nil {
		var s state
		if err := json.Unmarshal(saved, &s); err != nil {
			return state{}, fmt.Errorf("read %s: %w", path, err)
		}
		return s, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return state{}, err
	}
	s, err := makeState(ctx, owner, dir)
	if err != nil {
		return state{}, err
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return state{}, err
	}
	return s, writeWhole(path, append(text, '\n'))
}

func makeState(ctx context.Context, owner *pgxpool.Pool, dir string) (state, error) {
	q := db.New(owner)
	logs, err := q.OpenLogs(ctx)
	if err != nil {
		return state{}, fmt.Errorf("list logs: %w", err)
	}
	if len(logs) == 0 {
		_, err := admin.CreateLog(ctx, owner, admin.LogConfig{Host: "localhost", KeyDir: keyDir(dir), HighWaterDir: highWaterDir(dir)})
		if err != nil {
			return state{}, err
		}
		if logs, err = q.OpenLogs(ctx); err != nil {
			return state{}, fmt.Errorf("list logs: %w", err)
		}
	}
	log := logs[0]
	tenant, err := admin.CreateTenant(ctx, owner, "local", log.ID)
	if err != nil {
		return state{}, err
	}
	key, err := admin.CreateAPIKey(ctx, owner, tenant, "local", nil)
	if err != nil {
		return state{}, err
	}
	return newState(log, tenant, key.Key), nil
}

func newState(log db.OpenLogsRow, tenant uuid.UUID, apiKey string) state {
	return state{
		LogID: id.Log.Format(log.ID), Origin: log.Origin, PublicKey: hex.EncodeToString(log.PublicKey),
		VKey: verify.VKey(log.Origin, log.PublicKey), TenantID: id.Tenant.Format(tenant), APIKey: apiKey,
	}
}

// running says where everything is while the stack runs: running.json, mode 0600, for people's scripts and for tests.
type running struct {
	PID         int    `json:"pid"`
	APIURL      string `json:"api_url"`
	UIURL       string `json:"ui_url"`
	MetricsURL  string `json:"metrics_url"`
	Temporal    string `json:"temporal"` // host:port
	DatabaseURL string `json:"database_url"`
}

const (
	runningFile = "running.json"
	envFile     = "env"
)

func (s *stack) writeRunning() error {
	text, err := json.MarshalIndent(running{os.Getpid(), s.apiURL, s.uiURL, s.metrics, s.temporal, s.dbURL}, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(s.dir, runningFile)
	s.onStop(runningFile, func(context.Context) error { return os.Remove(path) })
	return errors.Join(s.writeEnv(), writeWhole(path, append(text, '\n')))
}

// writeEnv says the same to a shell, which reads it with `. .kapsel/env`. No value needs quoting.
func (s *stack) writeEnv() error {
	text := fmt.Sprintf("API_URL=%s\nAPI_KEY=%s\nPUBLIC_KEY=%s\n", s.apiURL, s.state.APIKey, s.state.PublicKey)
	return writeWhole(filepath.Join(s.dir, envFile), []byte(text))
}

// writeWhole writes a file that is there whole or not at all.
func writeWhole(path string, contents []byte) error {
	if err := os.WriteFile(path+".tmp", contents, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

func keyDir(dir string) string       { return filepath.Join(dir, "keys") }
func highWaterDir(dir string) string { return filepath.Join(dir, "high-water") }
