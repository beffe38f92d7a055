package chaos

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
)

// smallDisk is a file system in memory that can be filled up.
type smallDisk struct {
	path, ballast string
}

// diskMB has room for the WAL, which max_wal_size bounds but for some segments.
const diskMB = 512

// smallDiskRefused says why there can be no small disk here, "" if there can be.
func smallDiskRefused(dir string) string {
	if os.Getuid() != 0 {
		return "only root can mount a file system"
	}
	probe := filepath.Join(dir, "probe")
	if err := os.Mkdir(probe, 0o700); err != nil {
		return err.Error()
	}
	defer func() { _ = os.Remove(probe) }()
	disk, err := mountSmallDisk(probe)
	if err != nil {
		return err.Error()
	}
	if err := disk.remove(); err != nil {
		return err.Error()
	}
	return ""
}

func mountSmallDisk(path string) (*smallDisk, error) {
	output, err := exec.Command("mount", "-t", "tmpfs", "-o", "size="+strconv.Itoa(diskMB)+"m", "kapsel-chaos", path).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("mount a file system: %w: %s", err, output)
	}
	return &smallDisk{path: path, ballast: filepath.Join(path, "ballast")}, nil
}

// moveToSmallDisk moves a directory of a stopped server to a disk of its own and leaves a link.
func moveToSmallDisk(from, to string) (*smallDisk, error) {
	if err := os.Mkdir(to, 0o711); err != nil {
		return nil, err
	}
	disk, err := mountSmallDisk(to)
	if err != nil {
		return nil, err
	}
	moved := filepath.Join(to, filepath.Base(from))
	// cp and not a rename: it is another file system, and owners and modes are to stay.
	output, err := exec.Command("cp", "-a", from, moved).CombinedOutput()
	if err == nil {
		err = errors.Join(os.Chmod(to, 0o711), os.RemoveAll(from), os.Symlink(moved, from))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("move %s: %w: %s", from, err, output), disk.remove())
	}
	return disk, nil
}

// fill leaves no byte.
func (s *smallDisk) fill() error {
	file, err := os.Create(s.ballast)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	chunk := make([]byte, 1<<20)
	for {
		_, err := file.Write(chunk)
		if errors.Is(err, syscall.ENOSPC) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *smallDisk) free() error { return os.Remove(s.ballast) }

// remove unmounts the file system; the server has ended.
func (s *smallDisk) remove() error {
	if output, err := exec.Command("umount", s.path).CombinedOutput(); err != nil {
		return fmt.Errorf("unmount %s: %w: %s", s.path, err, output)
	}
	return nil
}
