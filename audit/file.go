package audit

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// replaceFile makes path hold exactly contents: the name leads to the old file or to the whole new one, whenever the power
// fails.
func replaceFile(path string, contents []byte, mode fs.FileMode) error {
	temp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(temp.Name()) }() // gone once it is renamed
	_, err = temp.Write(contents)
	return putInPlace(temp, path, mode, err)
}

// putInPlace gives a temporary file that was written, perhaps with an error, its name once it is on disk.
func putInPlace(temp *os.File, path string, mode fs.FileMode, err error) error {
	if err == nil {
		err = temp.Chmod(mode)
	}
	if err == nil {
		err = temp.Sync()
	}
	if err = errors.Join(err, temp.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
