package attestation_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/verify"
)

func TestSeedFileIsMadeOnceAndKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "log.seed")
	first, err := attestation.LoadOrCreateSigner(path, testOrigin)
	require.NoError(t, err)
	info, err := os.Lstat(path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode())
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Regexp(t, `^[0-9a-f]{64}\n$`, string(text))

	again, err := attestation.LoadOrCreateSigner(path, testOrigin)
	require.NoError(t, err)
	require.Equal(t, first.PublicKey(), again.PublicKey())
	loaded, err := attestation.LoadSigner(path, testOrigin)
	require.NoError(t, err)
	require.Equal(t, first.PublicKey(), loaded.PublicKey())

	other, err := attestation.LoadOrCreateSigner(filepath.Join(dir, "other.seed"), testOrigin)
	require.NoError(t, err)
	require.NotEqual(t, first.PublicKey(), other.PublicKey(), "seeds are random")
	names, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, names, 2, "no temporary file stays behind")
}

func TestManyStartsMakeOneSeed(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log.seed")
	keys := make([]string, 16)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			if s, err := attestation.LoadOrCreateSigner(path, testOrigin); err == nil {
				keys[i] = string(s.PublicKey())
			}
		})
	}
	wg.Wait()
	require.NotEmpty(t, keys[0])
	for _, key := range keys {
		require.Equal(t, keys[0], key)
	}
}

func TestLoadSignerRefuses(t *testing.T) {
	t.Parallel()
	seed := []byte(hex.EncodeToString(bytes.Repeat([]byte{1}, 32)) + "\n")
	for name, make := range map[string]func(path string) error{
		"readable by the group": func(p string) error { return writeMode(p, seed, 0o640) },
		"readable by everybody": func(p string) error { return writeMode(p, seed, 0o604) },
		"writable by the group": func(p string) error { return writeMode(p, seed, 0o620) },
		"executable by others":  func(p string) error { return writeMode(p, seed, 0o601) },
		"empty":                 func(p string) error { return writeMode(p, nil, 0o600) },
		"cut short":             func(p string) error { return writeMode(p, seed[:63], 0o600) },
		"31 bytes":              func(p string) error { return writeMode(p, seed[2:], 0o600) },
		"33 bytes":              func(p string) error { return writeMode(p, append([]byte("00"), seed...), 0o600) },
		"two seeds":             func(p string) error { return writeMode(p, append(seed[:65:65], seed...), 0o600) },
		"two line ends":         func(p string) error { return writeMode(p, append(seed[:65:65], '\n'), 0o600) },
		"raw bytes":             func(p string) error { return writeMode(p, bytes.Repeat([]byte{1}, 32), 0o600) },
		"a directory":           func(p string) error { return os.Mkdir(p, 0o700) },
		"a pipe":                func(p string) error { return syscall.Mkfifo(p, 0o600) },
		"a link to a good file": func(p string) error { return linkTo(p, seed) },
		"a link to nothing":     func(p string) error { return os.Symlink(p+".gone", p) },
		"very long":             func(p string) error { return writeMode(p, bytes.Repeat(seed, 1000), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "log.seed")
			require.NoError(t, make(path))
			_, err := attestation.LoadSigner(path, testOrigin)
			require.ErrorIs(t, err, attestation.ErrSeed)
			_, err = attestation.LoadOrCreateSigner(path, testOrigin)
			require.ErrorIs(t, err, attestation.ErrSeed, "what is there is never replaced")
			require.NotContains(t, err.Error(), "0101", "no error quotes a seed")
		})
	}
}

func TestLoadSignerWithoutFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log.seed")
	_, err := attestation.LoadSigner(path, testOrigin)
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = attestation.LoadOrCreateSigner(path, "not an origin")
	require.ErrorIs(t, err, verify.ErrOrigin)
	_, err = os.Lstat(path)
	require.ErrorIs(t, err, fs.ErrNotExist, "a wrong origin makes no file")
	_, err = attestation.LoadOrCreateSigner(filepath.Join(path, "below", "nothing"), testOrigin)
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestParseSeed(t *testing.T) {
	t.Parallel()
	seed := bytes.Repeat([]byte{0xFB}, 32)
	for _, text := range []string{
		hex.EncodeToString(seed), strings.ToUpper(hex.EncodeToString(seed)), base64.StdEncoding.EncodeToString(seed),
	} {
		got, err := attestation.ParseSeed(text)
		require.NoError(t, err)
		require.Equal(t, seed, got)
	}
	for _, text := range []string{
		"", "fb", hex.EncodeToString(seed[1:]), hex.EncodeToString(seed) + "\n", " " + hex.EncodeToString(seed),
		base64.StdEncoding.EncodeToString(seed[1:]), base64.URLEncoding.EncodeToString(seed), base64.RawStdEncoding.EncodeToString(seed),
	} {
		_, err := attestation.ParseSeed(text)
		require.ErrorIs(t, err, attestation.ErrSeed, "%q", text)
	}
}

// writeMode sets the mode by hand, since the umask narrows what os.WriteFile is told.
func writeMode(path string, contents []byte, mode fs.FileMode) error {
	if err := os.WriteFile(path, contents, 0o600); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

func linkTo(path string, contents []byte) error {
	if err := writeMode(path+".real", contents, 0o600); err != nil {
		return err
	}
	return os.Symlink(path+".real", path)
}
