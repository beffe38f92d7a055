package attestation

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kapsel-io/kapsel/verify"
)

// ErrSeed is returned for a seed, or a seed file, that must not be used.
var ErrSeed = errors.New("unusable signing seed")

// maxSeedText is more than any spelling of a seed needs: 64 hex digits and a line end.
const maxSeedText = 128

// LoadOrCreateSigner is LoadSigner, but where there is no file it first makes one with a new random seed and mode 0600.
// When several processes start at once, one of them makes it and all use it. A caller who knows the log's public key
// already compares it with PublicKey: a lost file would otherwise go unnoticed until verifiers reject the next head.
func LoadOrCreateSigner(path, origin string) (*Signer, error) {
	signer, err := LoadSigner(path, origin)
	if !errors.Is(err, fs.ErrNotExist) {
		return signer, err
	}
	if err := verify.CheckOrigin(origin); err != nil {
		return nil, fmt.Errorf("create signing seed: %w", err)
	}
	seed := make([]byte, ed25519.SeedSize)
	_, _ = rand.Read(seed) // never fails since Go 1.24
	err = createFile(path, []byte(hex.EncodeToString(seed)+"\n"))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("create signing seed: %w", err)
	}
	return LoadSigner(path, origin)
}

// LoadSigner reads the seed file of the log named origin. The error wraps fs.ErrNotExist if there is no file, and ErrSeed
// if it is a symbolic link or no regular file, if others than its owner may read or write it, or if it holds anything
// but one seed (see ParseSeed).
func LoadSigner(path, origin string) (*Signer, error) {
	text, err := readSeedFile(path)
	if err != nil {
		return nil, fmt.Errorf("load signing seed: %w", err)
	}
	seed, err := ParseSeed(strings.TrimSuffix(text, "\n"))
	if err != nil {
		return nil, fmt.Errorf("load signing seed from %s: %w", path, err)
	}
	return NewSigner(seed, origin)
}

// ParseSeed reads an Ed25519 seed of 32 bytes (RFC 8032, section 5.1.5) from 64 hexadecimal digits or from padded
// standard base64, as an environment variable holds it. The error wraps ErrSeed and never quotes the text.
func ParseSeed(text string) ([]byte, error) {
	seed, err := hex.DecodeString(text)
	if err != nil {
		seed, err = base64.StdEncoding.Strict().DecodeString(text)
	}
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("want %d bytes in hexadecimal or base64: %w", ed25519.SeedSize, ErrSeed)
	}
	return seed, nil
}

// readSeedFile checks the file that it has opened, so that nobody can exchange it between check and read.
func readSeedFile(path string) (string, error) {
	// O_NONBLOCK, because opening a named pipe would otherwise wait for its writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return "", fmt.Errorf("%s is a symbolic link; name the file itself: %w", path, ErrSeed)
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // read only
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a regular file: %w", path, ErrSeed)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s has mode %04o; run chmod 600 on it, and replace the key if others could read it: %w",
			path, info.Mode().Perm(), ErrSeed)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxSeedText+1))
	if err != nil {
		return "", err
	}
	if len(text) > maxSeedText {
		return "", fmt.Errorf("%s is longer than any seed: %w", path, ErrSeed)
	}
	return string(text), nil
}

// createFile makes a file of mode 0600 that didn't exist; else the error wraps fs.ErrExist. The name appears only once
// the contents are on disk: a crash leaves either no file or a whole one, and perhaps a temporary one that nobody reads.
func createFile(path string, contents []byte) error {
	dir := filepath.Dir(path)
	temp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // O_EXCL, mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(temp.Name()) }()
	if err := writeSynced(temp, contents); err != nil {
		return err
	}
	if err := os.Link(temp.Name(), path); err != nil { // unlike a rename, a link never replaces a file
		return err
	}
	return syncDir(dir)
}

// writeSynced writes contents to f, waits until they are on disk, and closes f.
func writeSynced(f *os.File, contents []byte) error {
	_, err := f.Write(contents)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncDir makes the directory's entries durable: a new or renamed file may otherwise be gone after a power failure.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
