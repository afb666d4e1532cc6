; Made from runtime.c: see there. A blank line is between two definitions, and nowhere else.
@.str = private constant [4 x i8] c"nan\00", align 1
@.str.1 = private constant [4 x i8] c"%f\0A\00", align 1
@.str.2 = private constant [2 x i8] c"0\00", align 1
@.str.3 = private constant [4 x i8] c"inf\00", align 1
@.str.4 = private constant [11 x i8] c"%c%s%se%d\0A\00", align 1
@.str.5 = private constant [2 x i8] c".\00", align 1
@.str.6 = private constant [1 x i8] zeroinitializer, align 1
@.str.7 = private constant [10 x i8] c"0.%.*s%s\0A\00", align 1
@.str.8 = private constant [4 x i8] c"000\00", align 1
@.str.9 = private constant [8 x i8] c"%s%.*s\0A\00", align 1
@.str.10 = private constant [17 x i8] c"0000000000000000\00", align 1
@.str.11 = private constant [9 x i8] c"%.*s.%s\0A\00", align 1
@.str.12 = private constant [5 x i8] c"%.*e\00", align 1
@.str.13 = private constant [6 x i8] c"%se%d\00", align 1

define weak double @printd(double %value) {
entry:
  %cmp = fcmp uno double %value, 0.000000e+00
  br i1 %cmp, label %if.then, label %if.else
if.then:
  %call = call i32 @puts(ptr @.str)
  br label %if.end
if.else:
  %call1 = call i32 (ptr, ...) @printf(ptr @.str.1, double %value)
  br label %if.end
if.end:
  ret double 0.000000e+00
}

declare i32 @puts(ptr)

declare i32 @printf(ptr, ...)

define weak double @putchard(double %value) {
entry:
  %cmp = fcmp ult double %value, 0x43E0000000000000
  br i1 %cmp, label %if.else, label %if.end3
if.else:
  %cmp1 = fcmp ult double %value, 0xC3E0000000000000
  br i1 %cmp1, label %if.end3, label %if.then2
if.then2:
  %conv = fptosi double %value to i64
  %0 = trunc i64 %conv to i32
  %1 = and i32 %0, 255
  br label %if.end3
if.end3:
  %code.0 = phi i32 [ 0, %if.else ], [ %1, %if.then2 ], [ 255, %entry ]
  %call = call i32 @putchar(i32 %code.0)
  ret double 0.000000e+00
}

declare i32 @putchar(i32)

define weak void @kaleidoscope_print(double %value) {
entry:
  %text.i = alloca [40 x i8], align 16
  %up.i = alloca [40 x i8], align 16
  %value.addr = alloca double, align 8
  %bits = alloca i64, align 8
  %digits = alloca [20 x i8], align 16
  store double %value, ptr %value.addr, align 8
  %call = call ptr @memcpy(ptr %bits, ptr %value.addr, i64 8)
  %0 = load double, ptr %value.addr, align 8
  %cmp = fcmp uno double %0, 0.000000e+00
  br i1 %cmp, label %if.then, label %if.end
if.then:
  %call1 = call i32 @puts(ptr @.str)
  br label %cleanup
if.end:
  %1 = load i64, ptr %bits, align 8
  %tobool.not = icmp sgt i64 %1, -1
  br i1 %tobool.not, label %if.end4, label %if.then2
if.then2:
  %call3 = call i32 @putchar(i32 45)
  %2 = load double, ptr %value.addr, align 8
  %fneg = fneg double %2
  store double %fneg, ptr %value.addr, align 8
  br label %if.end4
if.end4:
  %3 = load double, ptr %value.addr, align 8
  %cmp5 = fcmp oeq double %3, 0.000000e+00
  %cmp6 = fcmp ogt double %3, 0x7FEFFFFFFFFFFFFF
  %or.cond = or i1 %cmp5, %cmp6
  br i1 %or.cond, label %if.then7, label %if.end10
if.then7:
  %cond = select i1 %cmp5, ptr @.str.2, ptr @.str.3
  %call9 = call i32 @puts(ptr %cond)
  br label %cleanup
if.end10:
  call void @llvm.memset.p0.i64(ptr align 16 %digits, i8 0, i64 20, i1 false)
  br label %for.body.i
for.body.i:
  %precision.072.i = phi i32 [ 0, %if.end10 ], [ %inc.i, %cleanup45.i ]
  %call.i = call i32 (ptr, i64, ptr, ...) @snprintf(ptr %text.i, i64 40, ptr @.str.12, i32 %precision.072.i, double %3)
  %call2.i = call ptr @strchr(ptr %text.i, i32 101)
  %add.ptr.i = getelementptr inbounds nuw i8, ptr %call2.i, i64 1
  %call3.i = call i32 @atoi(ptr %add.ptr.i)
  %call5.i = call double @strtod(ptr %text.i, ptr null)
  %cmp6.i = fcmp une double %call5.i, %3
  br i1 %cmp6.i, label %if.then.i, label %for.cond20.i.preheader
if.then.i:
  store i8 0, ptr %call2.i, align 1
  %call.i.i = call i64 @strlen(ptr %text.i)
  %cmp.not22.not.i.i = icmp eq i64 %call.i.i, 0
  br i1 %cmp.not22.not.i.i, label %cleanup.i, label %for.body.i.i
for.body.i.i:
  %dec23.in.i.i = phi i64 [ %dec23.i.i, %for.cond.backedge.i.i ], [ %call.i.i, %if.then.i ]
  %dec23.i.i = add i64 %dec23.in.i.i, -1
  %arrayidx.i.i = getelementptr inbounds nuw i8, ptr %text.i, i64 %dec23.i.i
  %4 = load i8, ptr %arrayidx.i.i, align 1
  switch i8 %4, label %if.then7.i.i [
    i8 46, label %for.cond.backedge.i.i
    i8 57, label %if.end9.i.i
  ]
if.then7.i.i:
  %inc.i.i = add i8 %4, 1
  store i8 %inc.i.i, ptr %arrayidx.i.i, align 1
  %call12.i = call i32 (ptr, i64, ptr, ...) @snprintf(ptr %up.i, i64 40, ptr @.str.13, ptr %text.i, i32 %call3.i)
  %call14.i = call double @strtod(ptr %up.i, ptr null)
  %cmp15.i = fcmp oeq double %call14.i, %3
  %.69.i = select i1 %cmp15.i, i32 0, i32 4
  br label %cleanup.i
if.end9.i.i:
  store i8 48, ptr %arrayidx.i.i, align 1
  br label %for.cond.backedge.i.i
for.cond.backedge.i.i:
  %cmp.not.not.i.i = icmp eq i64 %dec23.i.i, 0
  br i1 %cmp.not.not.i.i, label %cleanup.i, label %for.body.i.i
cleanup.i:
  %cond52.i = phi i1 [ %cmp15.i, %if.then7.i.i ], [ false, %if.then.i ], [ false, %for.cond.backedge.i.i ]
  %cleanup.dest.slot.0.i = phi i32 [ %.69.i, %if.then7.i.i ], [ 4, %if.then.i ], [ 4, %for.cond.backedge.i.i ]
  br i1 %cond52.i, label %for.cond20.i.preheader, label %cleanup45.i
for.cond20.i.preheader:
  br label %for.cond20.i
for.cond20.i:
  %digit.0.idx.i = phi i64 [ %digit.1.idx.i, %for.inc.i ], [ 0, %for.cond20.i.preheader ]
  %p.0.i = phi ptr [ %incdec.ptr33.i, %for.inc.i ], [ %text.i, %for.cond20.i.preheader ]
  %5 = load i8, ptr %p.0.i, align 1
  switch i8 %5, label %if.then31.i [
    i8 0, label %for.cond.cleanup26.i
    i8 101, label %for.cond.cleanup26.i
    i8 46, label %for.inc.i
  ]
for.cond.cleanup26.i:
  %smin.i = call i64 @llvm.smin.i64(i64 %digit.0.idx.i, i64 1)
  br label %while.cond.i
if.then31.i:
  %digit.0.ptr.i = getelementptr inbounds i8, ptr %digits, i64 %digit.0.idx.i
  %digit.0.add.i = add nsw i64 %digit.0.idx.i, 1
  store i8 %5, ptr %digit.0.ptr.i, align 1
  br label %for.inc.i
for.inc.i:
  %digit.1.idx.i = phi i64 [ %digit.0.add.i, %if.then31.i ], [ %digit.0.idx.i, %for.cond20.i ]
  %incdec.ptr33.i = getelementptr inbounds nuw i8, ptr %p.0.i, i64 1
  br label %for.cond20.i
while.cond.i:
  %digit.2.idx.i = phi i64 [ %digit.0.idx.i, %for.cond.cleanup26.i ], [ %digit.2.add.i, %land.rhs38.i ]
  %cmp36.i = icmp sgt i64 %digit.2.idx.i, 1
  br i1 %cmp36.i, label %land.rhs38.i, label %while.end.i
land.rhs38.i:
  %digit.2.add.i = add nsw i64 %digit.2.idx.i, -1
  %arrayidx.ptr.i = getelementptr inbounds nuw i8, ptr %digits, i64 %digit.2.add.i
  %6 = load i8, ptr %arrayidx.ptr.i, align 1
  %cmp40.i = icmp eq i8 %6, 48
  br i1 %cmp40.i, label %while.cond.i, label %while.end.i
while.end.i:
  %digit.2.idx.lcssa.i = phi i64 [ %smin.i, %while.cond.i ], [ %digit.2.idx.i, %land.rhs38.i ]
  %digit.2.ptr.le.i = getelementptr inbounds i8, ptr %digits, i64 %digit.2.idx.lcssa.i
  store i8 0, ptr %digit.2.ptr.le.i, align 1
  br label %cleanup45.i
cleanup45.i:
  %cleanup.dest.slot.1.i = phi i32 [ 2, %while.end.i ], [ %cleanup.dest.slot.0.i, %cleanup.i ]
  %cond.i = icmp ne i32 %cleanup.dest.slot.1.i, 4
  %inc.i = add nuw nsw i32 %precision.072.i, 1
  %exitcond.not.i = icmp eq i32 %inc.i, 17
  %or.cond.i = select i1 %cond.i, i1 true, i1 %exitcond.not.i
  br i1 %or.cond.i, label %shortest_digits.exit, label %for.body.i
shortest_digits.exit:
  %call13 = call i64 @strlen(ptr %digits)
  %conv = trunc i64 %call13 to i32
  %7 = load double, ptr %value.addr, align 8
  %cmp14 = fcmp oge double %7, 1.000000e+16
  %cmp17 = fcmp olt double %7, 1.000000e-04
  %or.cond50 = or i1 %cmp14, %cmp17
  br i1 %or.cond50, label %if.then19, label %if.else
if.then19:
  %8 = load i8, ptr %digits, align 16
  %conv20 = sext i8 %8 to i32
  %cmp21 = icmp sgt i32 %conv, 1
  %cond23 = select i1 %cmp21, ptr @.str.5, ptr @.str.6
  %add.ptr = getelementptr inbounds nuw i8, ptr %digits, i64 1
  %call25 = call i32 (ptr, ...) @printf(ptr @.str.4, i32 %conv20, ptr %cond23, ptr %add.ptr, i32 %call3.i)
  br label %if.end49
if.else:
  %cmp26 = icmp slt i32 %call3.i, 0
  br i1 %cmp26, label %if.then28, label %if.else32
if.then28:
  %sub29 = xor i32 %call3.i, -1
  %call31 = call i32 (ptr, ...) @printf(ptr @.str.7, i32 %sub29, ptr @.str.8, ptr %digits)
  br label %if.end49
if.else32:
  %add = add nuw nsw i32 %call3.i, 1
  %cmp33.not = icmp slt i32 %add, %conv
  br i1 %cmp33.not, label %if.else40, label %if.then35
if.then35:
  %sub38 = sub nsw i32 %add, %conv
  %call39 = call i32 (ptr, ...) @printf(ptr @.str.9, ptr %digits, i32 %sub38, ptr @.str.10)
  br label %if.end49
if.else40:
  %idx.ext = zext nneg i32 %call3.i to i64
  %add.ptr44 = getelementptr inbounds nuw i8, ptr %digits, i64 %idx.ext
  %add.ptr45 = getelementptr inbounds nuw i8, ptr %add.ptr44, i64 1
  %call46 = call i32 (ptr, ...) @printf(ptr @.str.11, i32 %add, ptr %digits, ptr %add.ptr45)
  br label %if.end49
if.end49:
  br label %cleanup
cleanup:
  ret void
}

declare ptr @memcpy(ptr, ptr, i64)

declare void @llvm.memset.p0.i64(ptr, i8, i64, i1 immarg)

declare i64 @strlen(ptr)

declare i32 @snprintf(ptr, i64, ptr, ...)

declare ptr @strchr(ptr, i32)

declare i32 @atoi(ptr)

declare double @strtod(ptr, ptr)

declare i64 @llvm.smin.i64(i64, i64)
