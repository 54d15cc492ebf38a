import java.io.*;
import java.nio.*;
import java.nio.channels.*;
import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.nio.file.attribute.*;
import java.util.*;
import java.util.stream.*;

/** Checkpoints as Java programs write them. Argument: write | restart */
public class States {
    static final Path HERE = Path.of("ckpt/java");

    public static void main(String[] arguments) throws Exception {
        if (arguments[0].equals("write")) write(); else restart();
    }

    static void write() throws Exception {
        Files.createDirectories(HERE.resolve("deep/er"));
        try (var out = new ObjectOutputStream(new BufferedOutputStream(new FileOutputStream("ckpt/java/state.tmp")))) {
            out.writeObject(IntStream.range(0, 20000).boxed().collect(Collectors.toCollection(ArrayList::new)));
        }
        Files.move(HERE.resolve("state.tmp"), HERE.resolve("state"), StandardCopyOption.ATOMIC_MOVE);
        try (var file = new RandomAccessFile("ckpt/java/random", "rw")) {
            file.setLength(100000);
            file.seek(5000);
            file.writeUTF("in the middle");
            file.getFD().sync();
        }
        try (var channel = FileChannel.open(HERE.resolve("mapped"), StandardOpenOption.CREATE_NEW,
                StandardOpenOption.READ, StandardOpenOption.WRITE); var lock = channel.lock()) {
            var map = channel.map(FileChannel.MapMode.READ_WRITE, 0, 1 << 16);
            for (int index = 0; index < 1 << 14; index++) map.putInt(index);
            map.force();
        }
        for (int number = 0; number < 20; number++)
            Files.writeString(HERE.resolve("many-" + number), "line\n".repeat(number * 30));
        Files.copy(HERE.resolve("state"), HERE.resolve("deep/er/copied"), StandardCopyOption.COPY_ATTRIBUTES);
        Files.createSymbolicLink(HERE.resolve("link"), Path.of("deep"));
        Files.createLink(HERE.resolve("second"), HERE.resolve("random"));
        Path temporary = Files.createTempFile(HERE, "tmp", ".bin");
        Files.write(temporary, new byte[3000]);
        Files.move(temporary, HERE.resolve("moved"), StandardCopyOption.REPLACE_EXISTING);
        Files.setPosixFilePermissions(HERE.resolve("moved"), PosixFilePermissions.fromString("rw-r-----"));
        Files.setLastModifiedTime(HERE.resolve("moved"), FileTime.fromMillis(1_000_000_000_000L));
        show();
    }

    static void restart() throws Exception {
        show();
        try (var in = new ObjectInputStream(new FileInputStream("ckpt/java/state"))) {
            System.out.println(((List<?>) in.readObject()).size());
        }
        try (var channel = FileChannel.open(HERE.resolve("mapped"), StandardOpenOption.READ, StandardOpenOption.WRITE)) {
            var map = channel.map(FileChannel.MapMode.READ_WRITE, 0, channel.size());
            System.out.println(map.getInt(400));
            map.putInt(400, -1);
            try (var out = FileChannel.open(HERE.resolve("transferred"), StandardOpenOption.CREATE, StandardOpenOption.WRITE)) {
                System.out.println(channel.transferTo(100, 30000, out));
            }
        }
        Files.writeString(HERE.resolve("many-3"), "appended\n", StandardOpenOption.APPEND);
        Files.move(HERE.resolve("deep"), HERE.resolve("renamed"));
        Files.delete(HERE.resolve("second"));
        for (String name : List.of("none", "renamed"))
            try { Files.delete(HERE.resolve(name)); System.out.println("deleted"); }
            catch (IOException error) { System.out.println(error.getClass().getSimpleName()); }
        Files.move(HERE.resolve("moved"), Path.of("outside"), StandardCopyOption.REPLACE_EXISTING);
        Files.copy(Path.of("outside"), HERE.resolve("inside"));
        System.out.println(new File("ckpt/java/inside").renameTo(new File("ckpt/java/inside-2")));
        System.out.println(new File("ckpt/java/many-0").delete());
        show();
    }

    static void show() throws Exception {
        try (Stream<Path> paths = Files.walk(Path.of("ckpt"))) {
            for (Path path : paths.filter(path -> !path.startsWith("ckpt/.sheaf")).sorted().toList()) {
                var seen = Files.readAttributes(path, PosixFileAttributes.class, LinkOption.NOFOLLOW_LINKS);
                System.out.println(path + " " + PosixFilePermissions.toString(seen.permissions()) + " "
                    + (seen.isRegularFile() ? seen.size() : "-"));
            }
        }
        System.out.println(Files.isSameFile(HERE.resolve("state"), HERE.resolve("../java/state")));
        System.out.println(Path.of("").toRealPath().relativize(HERE.resolve("state").toRealPath()));
        System.out.println(Stream.of(new File("ckpt/java").list()).sorted().toList());
    }
}
