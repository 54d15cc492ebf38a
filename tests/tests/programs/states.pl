# Checkpoints as Perl programs write them. Argument: write | restart
use strict;
use warnings;
use Fcntl qw(:DEFAULT :flock :seek);
use File::Copy qw(copy move);
use File::Find;
use File::Path qw(make_path remove_tree);
use File::Temp qw(tempfile tempdir);
use SDBM_File;
use Storable qw(lock_nstore lock_retrieve);

$Storable::canonical = 1;

sub write_phase {
    make_path("ckpt/perl/deep/er", "ckpt/perl/gone/soon");
    lock_nstore({ step => 1, field => [map { $_ * $_ } 1 .. 5000] }, "ckpt/perl/state");
    tie(my %table, "SDBM_File", "ckpt/perl/table", O_RDWR | O_CREAT, 0640) or die "sdbm: $!";
    $table{"key $_"} = "value $_" for 1 .. 300;
    untie %table;
    my ($handle, $name) = tempfile(DIR => "ckpt/perl");
    print $handle "from a temporary file\n" x 100;
    close $handle or die;
    move($name, "ckpt/perl/moved") or die;
    copy("ckpt/perl/moved", "ckpt/perl/deep/er/copied") or die;
    open(my $log, ">>", "ckpt/perl/log") or die;
    flock($log, LOCK_EX) or die;
    print $log "line $_\n" for 1 .. 2000;
    close $log;
    open(my $update, "+<", "ckpt/perl/log") or die;
    seek($update, 100, SEEK_SET);
    print $update "HERE";
    truncate($update, 9000) or die;
    close $update;
    sysopen(my $new, "ckpt/perl/new", O_WRONLY | O_CREAT | O_EXCL, 0600) or die;
    syswrite($new, "x" x 70000);
    close $new;
    sysopen(my $again, "ckpt/perl/new", O_WRONLY | O_CREAT | O_EXCL) and die;
    print "again: $!\n";
    symlink("deep", "ckpt/perl/link") or die;
    link("ckpt/perl/log", "ckpt/perl/second") or die;
    my $directory = tempdir(DIR => "ckpt/perl/gone");
    remove_tree("ckpt/perl/gone");
    if (my $child = fork) { waitpid($child, 0); print "child: $?\n" }
    else { open(my $out, ">", "ckpt/perl/child") or die; print $out "from the child\n"; exit 3 }
    utime(1_000_000_000, 1_000_000_000, "ckpt/perl/new") or die;
    show();
}

sub restart_phase {
    show();
    my $state = lock_retrieve("ckpt/perl/state");
    $state->{step}++;
    lock_nstore($state, "ckpt/perl/state.new");
    rename("ckpt/perl/state.new", "ckpt/perl/state") or die;
    tie(my %table, "SDBM_File", "ckpt/perl/table", O_RDWR, 0) or die "sdbm: $!";
    delete $table{"key $_"} for 1 .. 100;
    print scalar(keys %table), "\n";
    untie %table;
    {
        local ($^I, @ARGV) = (".orig", "ckpt/perl/log", "ckpt/perl/moved");
        while (<>) { s/line/LINE/; print }
    }
    rename("ckpt/perl/deep", "ckpt/perl/shallow") or die;
    unlink("ckpt/perl/second", "ckpt/perl/child") == 2 or die;
    print "-X: ", join(" ", map { -e "ckpt/perl/$_" ? (-s _ // 0) . (-d _ ? "d" : "") : "none" } qw(state second shallow link)) =~ s/\d+d/d/r, "\n";
    show();
}

sub show {
    find({ no_chdir => 1, wanted => sub {
        my @stat = lstat($_);
        printf("%s %o %s %s\n", $_, $stat[2], -f _ ? $stat[7] : "-", -l $_ ? readlink($_) : "");
    }, preprocess => sub { sort grep { $_ ne ".sheaf" } @_ } }, "ckpt");
    opendir(my $directory, "ckpt/perl") or die;
    print join(" ", sort readdir($directory)), "\n";
    print join(" ", glob("ckpt/perl/{state,l}*")), "\n";
}

$ARGV[0] eq "write" ? write_phase() : restart_phase();
