// A Go program, which calls the kernel itself: writes and reads checkpoints in ckpt, and prints what it saw.
package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

func check(err error) {
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
}

func write() {
	check(os.MkdirAll("ckpt/x/y", 0o755))
	var ranks sync.WaitGroup
	for rank := 0; rank < 8; rank++ {
		ranks.Add(1)
		go func(rank int) {
			defer ranks.Done()
			for step := 0; step < 20; step++ {
				name := fmt.Sprintf("ckpt/x/rank-%d", rank)
				bytes := make([]byte, 5000*(rank+1))
				bytes[step] = byte(step)
				check(os.WriteFile(name+".tmp", bytes, 0o640))
				check(os.Rename(name+".tmp", name))
			}
		}(rank)
	}
	ranks.Wait()
	_, err := os.Stat("ckpt/missing")
	fmt.Println("missing:", os.IsNotExist(err))
	_, err = os.OpenFile("ckpt/x/rank-0", os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	fmt.Println("again:", os.IsExist(err))
	check(os.Symlink("x/rank-1", "ckpt/latest"))
	check(os.Chmod("ckpt/x/rank-2", 0o600))
	check(os.Truncate("ckpt/x/rank-3", 100))
	check(os.WriteFile("ckpt/x/y/removed", []byte("x"), 0o600))
	check(os.RemoveAll("ckpt/x/y"))
}

func main() {
	if os.Args[1] == "write" {
		write()
	}
	check(filepath.Walk("ckpt", func(path string, info os.FileInfo, err error) error {
		check(err)
		fmt.Println(path, info.Mode())
		if info.Mode().IsRegular() {
			bytes, err := os.ReadFile(path)
			check(err)
			fmt.Printf("  %d bytes, %x\n", len(bytes), sha256.Sum256(bytes))
		}
		return nil
	}))
}
